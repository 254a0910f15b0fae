"""DuckDB: the embedded engine with its limits, and the warehouse that is one file behind a moving pointer."""
