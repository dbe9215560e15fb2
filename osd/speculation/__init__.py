"""How far to speculate: what rounds cost, how often proposals are accepted, the length with the best goodput."""
