"""The part of the build that pyproject.toml cannot say: configs/ and suites/ travel in the wheel, as kava/_shipped/."""

import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    def run(self):
        super().run()
        for name in () if self.editable_mode else ("configs", "suites"):
            # site.env is the user's own, and may hold keys.
            private = shutil.ignore_patterns("site.env")
            shutil.copytree(name, f"{self.build_lib}/kava/_shipped/{name}", dirs_exist_ok=True, ignore=private)


setup(cmdclass={"build_py": BuildPy})
