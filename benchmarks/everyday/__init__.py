"""Everyday questions by kind: prompts to distil a base drafter on, and others to judge it by."""
