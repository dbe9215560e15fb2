"""From the outcome stream to batches: what is remembered, and what is drawn from it."""
