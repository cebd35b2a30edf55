"""The guide's commands with the paper's own configuration, as typed, on a stand-in for its cluster's shared model library.

The only place where `llama1b_aug` itself trains: its hub names are found where the guide's HF_HOME points, and nothing is downloaded.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.stand_in_hub import fill

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "REPRODUCTION_GUIDE.zh-CN.md").read_text(encoding="utf-8")
TRAIN = "python train.py --config configs/llama1b_aug.yaml --quick_test"
EVALUATE = "python evaluate.py --checkpoint checkpoints/test --dataset gsm8k --quick_test"
ASK = """python inference.py \\
    --checkpoint outputs/llama1b_aug/seed_42/best_checkpoint \\
    --config configs/llama1b_aug.yaml \\
    --mode interactive"""

pytestmark = pytest.mark.slow


def type_in(checkout: Path, command: str, library: Path, text: str = "", code: int = 0) -> str:
    """Type a command in a shell with the guide's exports; what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment = kept | {
        "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(library), "TRANSFORMERS_CACHE": str(library), "HF_DATASETS_CACHE": str(library),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", command], cwd=checkout, env=environment, input=text, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == code, f"{command}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    root.mkdir()
    for path in [*ROOT.glob("*.py"), ROOT / "configs", ROOT / "src"]:
        (root / path.name).symlink_to(path)
    return root


def test_the_guides_commands_with_the_papers_configuration(checkout: Path, tmp_path: Path) -> None:
    for command in (TRAIN, EVALUATE, ASK):
        assert f"\n{command}\n" in GUIDE
    library = tmp_path / "share" / "models"
    fill(library)
    shown = type_in(checkout, TRAIN, library)
    assert "trained 30 steps" in shown
    assert "kava on gsm8k (20 questions)" in shown
    (checkout / "checkpoints/test/results_gsm8k.yaml").unlink()
    assert "kava on gsm8k (20 questions)" in type_in(checkout, EVALUATE, library)
    run = yaml.safe_load((checkout / "checkpoints/test/results_gsm8k.yaml").read_text())["run"]
    assert (run["name"], run["model"], run["config"]["latent"]["num_tokens"]) == ("llama1b_aug", "meta-llama/Llama-3.2-1B-Instruct", 24)

    (checkout / "outputs" / "llama1b_aug").mkdir(parents=True)
    (checkout / "outputs" / "llama1b_aug" / "seed_42").symlink_to(checkout / "checkpoints" / "test")
    shown = type_in(checkout, ASK, library, "How many apples does Tom have ?\n/trace\n")
    assert "kava, 24 latents" in shown
    assert "forward passes" in shown
    assert "prefill" in shown


def test_a_model_that_cannot_be_reached_ends_in_one_sentence_with_the_three_cures(checkout: Path, tmp_path: Path) -> None:
    shown = type_in(checkout, "python train.py --config configs/llama1b_aug.yaml", tmp_path / "empty", code=2)
    assert shown.count("\n") == 1
    assert shown.startswith("kava: ")
    for cure in ("HF_ENDPOINT=https://hf-mirror.com", "hf download", "set model.name to a local path"):
        assert cure in shown
