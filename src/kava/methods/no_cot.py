"""No CoT: question, then answer. The lower bound."""

from kava.methods.base import Method

METHOD = Method(name="no_cot")
