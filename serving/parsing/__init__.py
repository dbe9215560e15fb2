"""Splits an answer's text into reasoning, content and tool calls while it is generated."""
