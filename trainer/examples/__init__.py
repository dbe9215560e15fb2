"""Training examples and batches from outcomes: which position of the drafter predicts which token."""
