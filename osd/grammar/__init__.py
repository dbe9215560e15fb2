"""Grammars that constrain answers: checked, compiled for a tokenizer, and followed token by token."""
