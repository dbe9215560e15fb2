"""Values that pass between the rooms; they import nothing of ours."""
