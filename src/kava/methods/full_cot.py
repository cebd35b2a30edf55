"""Full CoT: supervised fine-tuning on the whole written trace, which is also written at inference. The upper bound."""

from kava.methods.base import Method

METHOD = Method(name="full_cot", writes_cot=True)
