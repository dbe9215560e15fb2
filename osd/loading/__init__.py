"""From what the operator typed to a causal LM in memory."""
