"""The model: read `kava.model.kava` first; it shows one whole training step on a page."""
