"""Protocols through which the rooms use one another; no implementation is imported here."""
