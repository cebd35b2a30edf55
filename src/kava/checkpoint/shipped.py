"""The trained mini model that is shipped with the package: `builtin:mini` in place of a checkpoint's directory.

Its `README.md` and `kava_config.json` describe how it was trained; scripts/ship_mini_checkpoint.py created it.
"""

from pathlib import Path

SHIPPED = {"builtin:mini": Path(__file__).parent / "mini"}


def located(name: str | Path) -> Path:
    """Return the directory of a checkpoint: `name` itself, except for the names in `SHIPPED`."""
    return SHIPPED.get(str(name), Path(name))
