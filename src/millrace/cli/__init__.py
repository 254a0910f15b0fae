"""The command line: parses, calls `app`, prints. It decides nothing."""
