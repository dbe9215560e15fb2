"""What a drafter is trained on and judged by: losses, acceptance, and the logits they need. Tensors in, tensors out."""
