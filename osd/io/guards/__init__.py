"""Locks in Redis, so that one service and one distiller use an outcome stream, and checks of that Redis."""
