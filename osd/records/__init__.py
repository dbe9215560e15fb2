"""Values that the rooms exchange; this room imports no other."""
