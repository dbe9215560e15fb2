"""The drift monitor: a history of what was served and learnt, and alerts about it."""
