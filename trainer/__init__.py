"""Online distillation of the drafter from recorded outcomes. No Ray, no HTTP."""
