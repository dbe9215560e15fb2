"""Putting an engine together from a configuration; the one room that knows all the others."""
