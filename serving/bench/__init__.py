"""A load generator for OpenAI-compatible servers, and the figures of its results."""
