"""The step loop: continuous batching with rounds of propose, verify and commit. No Ray, Redis or HTTP."""
