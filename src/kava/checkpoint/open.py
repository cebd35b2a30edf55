"""Open a trained model by directory, run or hub name, on a device, with its tokenizer and configuration.

opened = open_checkpoint("outputs/mini")
opened.reasoner().generate(["..."])
"""

import re
from pathlib import Path
from typing import Any

from kava.checkpoint.files import Trained, load_checkpoint
from kava.checkpoint.kava_config import KAVA_CONFIG
from kava.errors import UserError, reason_of
from kava.results import BEST_CHECKPOINT
from kava.runtime.device import choose_device

# Default directories of runs. A path in one of them is never a hub name, even if the directory does not exist yet.
OWN_DIRECTORIES = (("checkpoints",), ("outputs",))
# A model name on the hub: owner/name.
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def open_checkpoint(
    name: str | Path, overrides: dict[str, Any] | None = None, device: str | None = None, revision: str | None = None
) -> Trained:
    """Load a trained model for inference.

    Args:
        name: a checkpoint, the directory of a run that has a best one, a hub name, or `builtin:mini`, the trained model of the package.
        overrides: dotted configuration keys to change, such as `latent.num_iterations`; `system.device` sets the device.
        device: "cpu", "cuda", "cuda:N"; default: a GPU if there is one.
        revision: branch, tag or commit on the hub.

    Raises:
        UserError: there is no such checkpoint, it is damaged, its base model cannot be found, or there is no such device.
    """
    chosen = choose_device(device or (overrides or {}).get("system.device"))
    return load_checkpoint(checkpoint_directory(name, revision), overrides, chosen)


def checkpoint_directory(name: str | Path, revision: str | None = None) -> Path:
    """Return the directory of a checkpoint: `name` itself, the best checkpoint of a run, or a download from the hub.

    Raises:
        UserError: it looks like a hub name, and the hub has no such model or cannot be reached.
    """
    best = Path(name) / BEST_CHECKPOINT
    if best.is_dir():
        return best
    own = Path(name).parts[:1] in OWN_DIRECTORIES
    if own or Path(name).exists() or not _HUB_NAME.fullmatch(str(name)) or Path(name).parent.is_dir():
        return Path(name)
    return _download(str(name), revision)


def results_directory(name: str | Path) -> Path:
    """Return where results on a checkpoint go: the directory of its run; for a download in the hub's cache, `outputs/OWNER--NAME`."""
    directory = checkpoint_directory(name)
    is_download = directory.parent.name == "snapshots" and directory.parents[1].name.startswith("models--")
    return Path("outputs") / directory.parents[1].name.removeprefix("models--") if is_download else directory.parent


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = reason_of(error)
        raise UserError(
            f"'{name}' is not a checkpoint: there is no such directory with a {KAVA_CONFIG}, and no such model on the hub ({reason})"
        ) from None
