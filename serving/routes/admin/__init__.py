"""Routes of the admin page: its files, its data, its levers."""
