"""The CPU back end: loops compiled by numba, `backend/`, which calls them, and MEASUREMENTS.md with their figures."""
