"""The distiller actor, in which the trainer runs."""
