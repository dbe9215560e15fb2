"""The target: finding and loading a model, and running it over the slot KV cache."""
