"""The step loop: continuous batching with rounds of propose, verify and commit; it knows no Ray, Redis or HTTP."""
