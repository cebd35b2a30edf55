"""The trained mini model that travels with the package: `builtin:mini` in place of a checkpoint's directory.

How it was made stands in its `README.md` and `kava_config.json`; scripts/ship_mini_checkpoint.py put it there.
"""

from pathlib import Path

SHIPPED = {"builtin:mini": Path(__file__).parent / "mini"}


def located(name: str | Path) -> Path:
    """Where a checkpoint's files are: `name` itself, but for the names of `SHIPPED`."""
    return SHIPPED.get(str(name), Path(name))
