"""Rules about an asset's rows, the checks that run them, and the gate that stops a publish.

`rules` reads them from a project's files, `sql` says them in DuckDB's dialect, `gate` runs them and raises GateFailed.
"""
