"""The admin page and the data behind it."""
