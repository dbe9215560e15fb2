"""Everything that leaves the process: the Redis outcome stream, the weight store, the embedded redis-server."""
