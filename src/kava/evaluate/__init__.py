"""Evaluation: accuracy by generation, efficiency, result files."""

import sys

from kava.runtime.callable_package import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
