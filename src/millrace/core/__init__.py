"""Values and protocols that every room shares; no I/O and no third-party imports."""
