"""What people and machines see of a run: lines in a terminal, JSON lines in a log."""
