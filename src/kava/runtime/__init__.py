"""Infrastructure of a run: atomic directories, locks, processes, optional packages, provenance."""
