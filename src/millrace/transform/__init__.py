"""Models: SQL files that make an asset each, and dbt projects, run by an engine that the caller brings."""
