"""Distillation without traffic: the target answers prompts, and the drafter learns from the answers."""
