"""`kava smoke-test`, `python smoke_test.py`."""

from dataclasses import dataclass


@dataclass
class SmokeTest:
    """Check the environment and every component with tiny random models, in under two minutes on a CPU.

    A line per check with what was measured; exit code 1 if any failed, each with its cure.
    """

    def run(self) -> int:
        from kava.tools.smoke.smoke_test import smoke_test

        return smoke_test()
