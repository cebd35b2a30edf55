"""Data sources: load examples from files, directories and the hub, and find their splits."""
