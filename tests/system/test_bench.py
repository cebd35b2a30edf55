"""The benchmark commands as typed, on tiny shapes. No time is asserted, only what must hold at any speed."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from helpers.forked_python import python
from kava.tools.bench.record import read_bench
from kava.tools.bench.step import VARIANTS, variants_of
from kava.tools.bench.workload import Workload

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STEP = ["--batch_size", "2", "--question", "9", "--cot", "7", "--answer", "6", "--latents", "4", "--lora_r", "4"]
DECODING = ["--new_tokens", "6", "--trace_tokens", "9", "--answer_tokens", "2", "--decoding_batches", "1", "3"]


def run(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "160"}
    done = subprocess.run([python(), *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    return path, run("-m", "kava", "bench", "--shape", "tiny", "--repeats", "2", *STEP, *DECODING, "--output", str(path)).stdout


def test_bench_measures_every_variant(recorded: tuple[Path, str]) -> None:
    path, shown = recorded
    found = read_bench(path)
    half = variants_of(Workload()) != VARIANTS
    assert set(found.ratios) - {f"step.bf16_speedup_over_{name}" for name in VARIANTS if half} == {
        "step.speedup_over_naive", "step.speedup_over_pccot", "step.memory_of_naive", "step.memory_of_pccot",
        "decoding.incremental_over_recomputed", "decoding.latent_over_written_batch_1", "decoding.latent_over_written_batch_3",
    }  # fmt: skip
    assert all(value > 0 for value in found.ratios.values())
    step, _, (incremental, recomputed), thinking = found.measured.values()
    assert [row["variant"] for row in step] == list(variants_of(Workload()))
    assert all(len(row["all seconds"]) == 2 and row["peak MiB"] > row["step alone MiB"] > 0 for row in step)
    assert all(row["loss off by"] < 1e-4 for row in step if row["variant"] in VARIANTS)
    assert incremental["tokens written"] == recomputed["tokens written"] == 6
    passes = [(row["batch"], row["one question"], row["forward passes"], row["tokens written"]) for row in thinking]
    # 1 for the prefill, T = 3, 1 for the fixed text, and one for every further token.
    assert passes == [(batch, *row) for batch in (1, 3) for row in (("latent", 6, 2), ("written", 9, 9))]
    assert found.provenance["command_line"].startswith("__main__.py bench --shape tiny")
    assert "decoding.incremental_over_recomputed" in shown
    assert "6 tokens after at most 9, all the same" in shown
    assert "utilisation" in shown


def test_guard_repeats_the_recorded_settings_and_names_what_got_worse(recorded: tuple[Path, str], tmp_path: Path) -> None:
    content = json.loads(recorded[0].read_text())
    content["settings"] |= {"parts": ["decoding"], "decoding_batches": [1]}
    content["ratios"] = {"decoding.incremental_over_recomputed": 1e-9, "decoding.latent_over_written_batch_1": 1e9}
    path, output = tmp_path / "recorded.json", tmp_path / "now.json"
    path.write_text(json.dumps(content))
    done = run("-m", "kava", "bench", "--guard", str(path), "--output", str(output), code=1)
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if "decoding." in line}
    assert "ok" in rows["decoding.incremental_over_recomputed"]
    assert "worse by more than 15 %" in rows["decoding.latent_over_written_batch_1"]
    assert read_bench(output).settings == content["settings"]


def test_incremental_decoding_as_the_guide_types_it(tmp_path: Path) -> None:
    output = tmp_path / "decoding.json"
    words = ["--max_new_tokens", "5", "--batch_size", "2", "--repeats", "1", "--output", str(output)]
    done = run("benchmark_incremental_decoding.py", *words)
    assert "2 x 5 tokens after at most 64, all the same" in done.stdout
    assert "incremental decoding is" in done.stdout
    ((incremental, recomputed),) = read_bench(output).measured.values()
    for row in (incremental, recomputed):
        assert row["peak MiB"] > row["decoding alone MiB"] > 0
        assert (row["forward passes"], row["tokens written"]) == (5, 5)
    assert incremental["cache KiB"] > 0 == recomputed["cache KiB"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["benchmark_incremental_decoding.py", "--model", "./no_such_model"], "'./no_such_model' cannot be loaded"),
        (["benchmark_incremental_decoding.py", "--max_new_tokens", "0"], "max_new_tokens is 0; it must be at least 1"),
        (["-m", "kava", "bench", "--guard", "no_such_file.json"], "benchmark file no_such_file.json does not exist; record it again"),
        (["-m", "kava", "bench", "--answer", "3"], "answer is 3; it must be at least 6"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], message: str) -> None:
    done = run(*words, code=2)
    assert done.stdout == ""
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
