"""Online distillation of the drafter from recorded outcomes, with no Ray and no HTTP."""
