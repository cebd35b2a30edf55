"""iCoT (arXiv 2405.14838): the written trace loses its leading tokens stage by stage, until none is left."""

from kava.methods.base import Method

METHOD = Method(name="icot", curriculum="remove_tokens")
