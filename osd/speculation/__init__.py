"""Chooses the speculation length with the best goodput, from the cost of rounds and the acceptance of proposals."""
