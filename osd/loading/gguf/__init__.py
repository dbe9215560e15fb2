"""Converts GGUF files, once each, to folders that transformers loads: weights, configuration, tokenizer, end tokens."""
