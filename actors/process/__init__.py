"""What the processes of actors share: node, session, event log, periodic threads, memory."""
