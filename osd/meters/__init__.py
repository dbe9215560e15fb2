"""Counters and clocks of a running engine."""
