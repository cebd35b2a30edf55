"""The seven methods as points of one space; a new one is a file here and a line in `METHODS`."""

from kava.methods import coconut, codi, full_cot, icot, kava, no_cot, pccot
from kava.methods.base import Method

METHODS: dict[str, Method] = {module.METHOD.name: module.METHOD for module in (full_cot, no_cot, icot, coconut, codi, pccot, kava)}

__all__ = ["METHODS", "Method"]
