"""The drift monitor, without a Redis."""
