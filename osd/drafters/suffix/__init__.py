"""The `suffix` drafter, which has no weights: it proposes the tokens that followed the same context before."""
