"""Thin Ray shells around the engine, the distiller and their supervisor; the only place that imports Ray."""
