"""The supervisor actor: versions, the monitor's history, the stream, and an operator's wishes."""
