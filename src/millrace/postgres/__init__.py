"""PostgreSQL: sessions, catalogue, row digests, snapshots and differences."""
