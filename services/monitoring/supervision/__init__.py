"""Background loops of all processes: what they report, what operators want of them, their history."""
