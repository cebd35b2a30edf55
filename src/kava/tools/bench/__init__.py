"""What the fast training step and decoder are measured against; nothing here is used in training."""
