"""Training: the loop, its batches, optimizer, checkpoints that are whole or absent, and whoever follows it."""
