"""Evaluation: accuracy by generation, efficiency, result files."""
