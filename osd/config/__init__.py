"""Configuration, parsed once and frozen, and where things lie under the state folder."""
