"""Checks before a route's own code: authentication, and limits on a request's size and time."""
