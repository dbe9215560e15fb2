"""Text to token ids and back: tokenizer, chat templates, growing answers, stop strings, end tokens."""
