"""The target: running a causal LM over the slot cache, and what is kept of every row."""
