"""Operations on bfloat16 logits: the largest, log-probabilities, and verdicts on sampled rows' proposals."""
