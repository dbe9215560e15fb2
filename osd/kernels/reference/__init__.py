"""The reference back end: all computations by torch's operations, readable and with citations."""
