"""Trainers of single domains beside the base drafter's, from one stream."""
