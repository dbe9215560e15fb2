"""What the HTTP front counts and logs, and `/metrics`."""
