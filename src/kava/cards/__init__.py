"""The README.md of a checkpoint: what the hub shows as a model card, filled in from the run itself."""
