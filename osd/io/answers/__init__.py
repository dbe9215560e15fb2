"""The stream of recent answers in Redis, and the thread by which an engine reads it."""
