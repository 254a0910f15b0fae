"""Sources that are no database: files in a folder."""
