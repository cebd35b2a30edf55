"""What all tests share: shapes checked at run time, and markers that skip with a reason where a program is absent.

KAVA_TYPECHECK=0 leaves the shape checks out. KAVA_DATA_DIR names the directory of the real benchmark files.
"""

import importlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings

# Before anything imports kava: every annotated function checks the shapes and types of what it is given and returns.
if os.environ.get("KAVA_TYPECHECK", "1") != "0" and importlib.util.find_spec("beartype") is not None:
    from jaxtyping import install_import_hook

    if importlib.util.find_spec("triton") is not None:
        # Before the hook: Triton compiles a kernel's source, and finds the names of a checked function in the checker's module.
        importlib.import_module("kava.model.triton_kernels")
    install_import_hook("kava", "beartype.beartype")

# Looking for a smaller failing input may take five minutes, as often as the test runs: --hypothesis-profile=default asks for it.
settings.register_profile("kava", phases=[Phase.explicit, Phase.generate], database=None)
settings.load_profile("kava")

SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
DATA_DIR_VARIABLE = "KAVA_DATA_DIR"


def _lacks_programs(*names: str) -> str | None:
    absent = [name for name in names if shutil.which(name, path=SYSTEM_PATH) is None]
    return f"not installed: {', '.join(absent)} (scripts/install_test_servers.sh)" if absent else None


def _lacks_slurm() -> str | None:
    if os.geteuid() != 0:
        return "only root can start a private Slurm"
    return _lacks_programs("slurmctld", "slurmd", "sbatch", "munged")


def _lacks_browser() -> str | None:
    reasons = [_lacks_programs(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    return None if None in reasons else reasons[0]


def _lacks_data() -> str | None:
    directory = os.environ.get(DATA_DIR_VARIABLE)
    if not directory:
        return f"{DATA_DIR_VARIABLE} names no directory of benchmark files"
    return None if Path(directory).is_dir() else f"{DATA_DIR_VARIABLE}={directory} is no directory"


def _lacks_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


# Marker -> why its tests cannot run here, or None.
OBSTACLES: dict[str, Callable[[], str | None]] = {
    "slurm": _lacks_slurm,
    "browser": _lacks_browser,
    "latex": lambda: _lacks_programs("pdflatex"),
    "data": _lacks_data,
    "gpu": _lacks_gpu,
}


def pytest_configure(config: pytest.Config) -> None:
    """What tests cache is theirs, the workers' together, and leaves with them."""
    if "KAVA_CACHE" not in os.environ:
        place = os.environ["KAVA_CACHE"] = tempfile.mkdtemp(prefix="kava-tests-")
        config.add_cleanup(lambda: shutil.rmtree(place, ignore_errors=True))


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache that no other file's tests have put anything into."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAVA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run; each obstacle is looked for once, and only where a test asks.

    Of several workers none shall begin with a long file when the others are done: files with slow tests come first.
    """
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
    reasons: dict[str, str | None] = {}
    for item in items:
        for marker, obstacle in OBSTACLES.items():
            if item.get_closest_marker(marker) is None:
                continue
            if marker not in reasons:
                reasons[marker] = obstacle()
            if reasons[marker]:
                item.add_marker(pytest.mark.skip(reason=f"{marker}: {reasons[marker]}"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The directory of real benchmark files (`data` marker): gsm8k_test.jsonl, gsm8k_hard.jsonl, svamp.json, ..."""
    reason = _lacks_data()
    if reason:
        pytest.skip(reason)
    return Path(os.environ[DATA_DIR_VARIABLE])
