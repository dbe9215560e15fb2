"""Matrix products of few rows: weights in tiles, dense or as codes, by vector or matrix instructions."""
