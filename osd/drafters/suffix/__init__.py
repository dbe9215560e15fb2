"""The `suffix` drafter, which has no weights: it proposes what followed the same tokens before."""
