"""GGUF files, turned once into folders that transformers loads: weights, configuration, tokenizer, end tokens."""
