"""What clients ask for, as plain data."""
