"""The target: a causal LM run over the slot cache."""
