"""Starting a local Ray, joining another one, and checking that it can run what is asked."""
