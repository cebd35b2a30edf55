"""KV caches, attention backends and masks: the code that depends on transformers' cache and attention internals."""
