"""Runs opaque steps through the three doors: runner, journal, leases, retries, adoption.

Knows steps only through `core.ports.StepKind` and targets only through `core.ports.Target`.
"""
