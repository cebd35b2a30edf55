"""Estimates of the GPU memory and training time of a configuration, computed from shapes: no weights are loaded, nothing is run."""
