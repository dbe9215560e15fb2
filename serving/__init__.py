"""The HTTP front: OpenAI-compatible routes, the admin page, the command line."""
