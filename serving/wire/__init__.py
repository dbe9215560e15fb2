"""The OpenAI wire: request and answer schemas, views, server-sent events, errors."""
