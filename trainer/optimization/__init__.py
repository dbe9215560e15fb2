"""One update of a student's weights, and optimizers by name."""
