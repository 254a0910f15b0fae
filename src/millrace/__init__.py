"""Millrace: verified copies, gated models and published dashboards from one folder of small files."""

__version__ = "0.1.0"
