"""Dashboards: files into figures, figures into one HTML page that needs nothing from outside."""
