"""PCCoT (arXiv 2506.18582): as CODI, with M latents in T parallel Jacobi iterations."""

from kava.methods.base import Method

METHOD = Method(name="pccot", latents="parallel", teacher=True, codi=True, uses_projection=True)
