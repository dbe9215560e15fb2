"""Who may ask, how much and how slowly: what happens before a route's own code."""
