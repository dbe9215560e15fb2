"""The HTTP front end: OpenAI-compatible routes, the admin page, the `osd` command."""
