"""Training: the loop, its batches, the optimizer, atomic checkpoints, progress reports and trackers."""

import sys

from kava.runtime.callable_package import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
