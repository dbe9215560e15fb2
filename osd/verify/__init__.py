"""The verdict on proposals: the distribution of the target, the accept rules, log-probabilities."""
