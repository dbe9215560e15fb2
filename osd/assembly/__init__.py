"""Builds an engine from a configuration; the only room that knows all others."""
