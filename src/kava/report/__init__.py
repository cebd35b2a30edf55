"""Aggregates as tables: LaTeX, CSV, terminal, beside the reference numbers."""
