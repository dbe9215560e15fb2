"""What a drafter is trained on and judged by, from tensors to tensors: losses, acceptance, and the logits they need."""
