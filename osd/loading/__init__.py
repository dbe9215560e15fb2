"""From the model name that the operator gave to a causal LM in memory."""
