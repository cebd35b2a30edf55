"""Coconut (arXiv 2412.06769): stage by stage, the leading CoT steps give way to sequential latents fed back as they are."""

from kava.methods.base import Method

METHOD = Method(name="coconut", latents="sequential", curriculum="replace_steps")
