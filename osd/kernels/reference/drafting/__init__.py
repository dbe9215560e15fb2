"""A drafter's round: the feature network and its chain, and the choice of each token."""
