"""A Ray cluster of several nodes on this machine, and clients that stream while something in it dies."""
