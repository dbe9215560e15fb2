"""The engine actor, its reports, and the mailboxes of its clients."""
