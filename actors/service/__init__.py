"""What a server without Ray Serve holds: the whole service, and a client of its actors."""
