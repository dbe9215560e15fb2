"""How actors are named and called, whether Ray is in this process or behind a pipe."""
