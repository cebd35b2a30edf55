"""Training: the Hugging Face Trainer, with our losses, validation by generation, and checkpoints that are whole or absent."""
