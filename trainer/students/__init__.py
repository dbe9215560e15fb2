"""Drafters in training, one file a kind, behind one interface (`student.py`)."""
