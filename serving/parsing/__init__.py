"""Splits an answer's text into reasoning, content and tool calls, as it comes."""
