"""The CPU back end: loops compiled by numba, and `backend/`, which calls them. MEASUREMENTS.md has their figures."""
