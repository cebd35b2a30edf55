"""`kava smoke-test`, `python smoke_test.py`."""

from dataclasses import dataclass


@dataclass
class SmokeTest:
    """Check the environment and every component with tiny random models, in under two minutes on a CPU.

    Prints one line per check with the measured values. Exit code 1 if a check failed; each failure is shown with a way to fix it.
    """

    def run(self) -> int:
        from kava.tools.smoke.smoke_test import smoke_test

        return smoke_test()
