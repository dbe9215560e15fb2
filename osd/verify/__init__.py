"""Verification: shaping the target's distribution, the accept rules, verdicts, log-probabilities."""
