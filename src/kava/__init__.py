"""KaVa: language models that reason in latent tokens, taught by a compressed KV cache (arXiv 2510.02312)."""

__version__ = "0.1.0"
