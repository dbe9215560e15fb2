"""The CPU back end: loops compiled by numba, and `backend/`, which calls them; measured in MEASUREMENTS.md."""
