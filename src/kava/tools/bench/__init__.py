"""Benchmarks of the training step and the decoder against slower reference implementations; not used in training."""
