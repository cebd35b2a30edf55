"""The wheel, built from what git tracks and run in an empty directory: no file of the checkout is at hand there."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("src", "configs", "suites", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


def call(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "KAVA_DATA_DIR")}
    own |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(word) for word in words], cwd=cwd, env=own, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "--", *NEEDED], cwd=ROOT, capture_output=True, text=True)
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (work / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (work / "source" / name).write_bytes((ROOT / name).read_bytes())
    (work / "source" / "configs" / "site.env").write_text("export WANDB_API_KEY=secret\n")
    options = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q")
    built = call(sys.executable, "-m", "pip", "wheel", *options, "-w", work / "out", work / "source", cwd=work)
    assert built.returncode == 0, built.stderr
    return next((work / "out").glob("kava_latent-*.whl"))


@pytest.fixture(scope="module")
def kava(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `kava` program of an environment that has the wheel, and for all else the packages of this one."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    installed = call(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel, cwd=home)
    assert installed.returncode == 0, installed.stderr
    own = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).stdout.strip()
    Path(own, "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin" / "kava"


def test_configurations_and_suites_travel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"kava/_shipped/{path.relative_to(ROOT)}" for folder in ("configs", "suites") for path in (ROOT / folder).rglob("*.yaml")}
    assert len(wanted) > 30
    assert wanted <= names
    assert not [name for name in names if name.endswith("site.env")]


def test_commands_find_them_in_an_empty_directory(kava: Path, tmp_path: Path) -> None:
    listed = call(kava, "model-configs", "--list", cwd=tmp_path)
    assert "llama1b_aug_nl" in listed.stdout, listed.stderr
    compared = call(kava, "model-configs", "--compare", "llama1b_aug", "configs/ablations/kv_mse.yaml", cwd=tmp_path)
    assert "loss.kv_loss_type" in compared.stdout, compared.stderr
    trained = call(kava, "train", "--config", "llama1b_aug", cwd=tmp_path)
    # As far as this machine can go: the configuration was found, the model is on the hub.
    assert trained.stderr.startswith("kava: model 'meta-llama/Llama-3.2-1B-Instruct' is not in the cache, and HF_HUB_OFFLINE is set")
    unknown = call(kava, "reproduce", "mini-tabel1", cwd=tmp_path)
    assert unknown.stderr == "kava: suite 'mini-tabel1' is neither a file nor a name in suites/; did you mean 'mini-table1'?\n"


def test_the_working_directory_comes_first(kava: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mini.yaml").write_text("training: {learning_rate: 0.123}\n")
    compared = call(kava, "model-configs", "--compare", "mini", "llama1b_aug", cwd=tmp_path)
    assert "0.123" in compared.stdout, compared.stderr


@pytest.mark.slow
def test_several_seeds_are_trained_and_evaluated_there(kava: Path, tmp_path: Path) -> None:
    """Every step is a process of its own, which must find the package without the checkout too."""
    small = ("--model.mini.pretrain_steps", "2", "--training.max_steps", "1", "--datasets", "test")
    done = call(kava, "run-multi-seed", "--config", "mini", "--quick_test", "--seeds", "1", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "outputs" / "mini_quick_test_multi_seed" / "aggregated_results.yaml").is_file()
