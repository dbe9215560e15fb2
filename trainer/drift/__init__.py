"""Detects lasting changes of acceptance, by domain, from numbers alone."""
