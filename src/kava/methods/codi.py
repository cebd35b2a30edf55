"""CODI (arXiv 2502.21074): sequential latents, taught through the hidden state at the distillation token."""

from kava.methods.base import Method

METHOD = Method(name="codi", latents="sequential", teacher=True, codi=True, uses_projection=True)
