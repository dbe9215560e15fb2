"""Matrix products of few rows with weights in tiles, quantised or not, by vector or matrix instructions."""
