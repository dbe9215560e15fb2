"""Metrics and logs of the HTTP front end, and `/metrics`."""
