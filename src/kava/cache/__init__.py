"""The only place that touches transformers' cache and attention internals."""
