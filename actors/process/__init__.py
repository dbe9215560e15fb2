"""What every actor's process has: its node, its session, its events, threads that repeat."""
