"""KaVa (arXiv 2510.02312): as PCCoT, and every latent's keys and values follow the teacher's compressed KV cache."""

from kava.methods.base import Method

METHOD = Method(name="kava", latents="parallel", teacher=True, codi=True, kv=True, uses_projection=True)
