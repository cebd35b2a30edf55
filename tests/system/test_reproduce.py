"""A suite as a user types it: all eight methods from one base, one seed, cut down; then again, when everything is done."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from helpers.forked_python import python

REPOSITORY = Path(__file__).parents[2]
TINY = [
    "--model.mini.pretrain_steps", "5", "--model.mini.hidden_size", "32", "--model.mini.num_layers", "2", "--dataset.mini.num_train", "400",
    "--dataset.mini.num_eval", "20", "--training.max_steps", "6", "--training.eval_steps", "6", "--training.save_steps", "6",
    "--training.batch_size", "8", "--training.epochs_per_stage", "0.02", "--evaluation.validation_samples", "8",
    "--evaluation.max_new_tokens", "8", "--evaluation.datasets", '{"test": "builtin:mini/test"}',
]  # fmt: skip
METHODS = ["no_cot", "icot", "coconut", "codi", "simcot", "pccot", "full_cot", "kava"]

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
def test_eight_methods_end_in_tables_and_are_not_run_again(tmp_path: Path) -> None:
    environment = os.environ | {"KAVA_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "src")}
    words = [python(), "-m", "kava", "reproduce", "mini-short", "--seeds", "7", "--output_dir", str(tmp_path / "suite"), *TINY]

    def reproduce() -> str:
        done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=800)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    reproduce()
    written = {name: (tmp_path / "suite" / name).read_bytes() for name in ("summary.json", "tables.md", "accuracy.svg")}
    summary = json.loads(written["summary.json"])
    assert [(cell["run"], list(cell["per_seed"])) for cell in summary["cells"]] == [(method, ["7"]) for method in METHODS]
    assert {(item["first"], item["second"]) for item in summary["comparisons"]} == {("kava", method) for method in METHODS[:-1]}
    assert len(list((tmp_path / "cache" / "mini").glob("equation-seed7-*"))) == 1
    logs = [tmp_path / "suite" / "all" / method / "seed_7" / "run.log" for method in METHODS]
    before = [log.read_bytes() for log in logs]
    reproduce()
    assert [log.read_bytes() for log in logs] == before
    for name, content in written.items():
        assert (tmp_path / "suite" / name).read_bytes() == content
