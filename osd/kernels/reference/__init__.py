"""The reference back end: all that is computed, readable and with its citations, by torch's operations."""
