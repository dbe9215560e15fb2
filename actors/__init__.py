"""Thin Ray actors around the engine, the distiller and their supervisor; the only package that imports Ray."""
