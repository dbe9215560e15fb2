"""What a service of several engines decides as a whole, from their reports; no torch, so that a light process can."""
