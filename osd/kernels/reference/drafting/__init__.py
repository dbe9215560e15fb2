"""What a drafter computes in a round: the feature network and its chain, and the choice of each token."""
