"""Versions of domains' own drafters."""
