"""What is asked of logits in bfloat16: the greatest, log-probabilities, and verdicts on sampled proposals."""
