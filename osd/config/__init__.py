"""Configuration, parsed once and frozen; and the paths of everything in the state folder."""
