"""The guide's aggregation, table and configuration commands as typed, run as processes; and what they say to bad input."""

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from helpers.forked_python import python
from helpers.result_files import make_result, write_seed_dirs
from kava.config import load_config
from kava.explain.record import Explanation, write_explanation
from kava.results import result_path, write_result
from kava.tools.bench.record import write_bench

ROOT = Path(__file__).parents[2]


def run(*words: str, cwd: Path = ROOT, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command as a user types it in the repository's root."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    environment.pop("COLUMNS", None)
    done = subprocess.run([python(), *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def refused(*words: str, cwd: Path = ROOT) -> str:
    """A command that must end in one sentence on standard error, exit code 2, nothing on standard output."""
    done = run(*words, cwd=cwd, code=2)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("kava: ")
    return done.stderr


@pytest.fixture
def outputs(tmp_path):
    """`outputs/llama1b_aug` with three seeds on the guide's three test sets, as its steps 1 and 2 leave it."""
    root = tmp_path / "outputs"
    write_seed_dirs(root / "llama1b_aug", {"gsm8k": [561, 569, 565], "gsm8k-hard": [336, 348, 342], "svamp": [478, 488, 483]})
    return root


def aggregate_words(outputs: Path) -> list[str]:
    """The guide's step 3."""
    directory = outputs / "llama1b_aug"
    return [
        "aggregate_multi_seed.py",
        "--seed_dirs", *(str(directory / f"seed_{seed}") for seed in (42, 123, 456)),
        "--datasets", "gsm8k", "gsm8k-hard", "svamp",
        "--model_name", "KAVA-LLaMA-3.2-1B",
        "--output_json", str(directory / "aggregated_results.json"),
        "--output_yaml", str(directory / "aggregated_results.yaml"),
    ]  # fmt: skip


def test_aggregate_as_the_guide_types_it(outputs):
    done = run(*aggregate_words(outputs))
    content = yaml.safe_load((outputs / "llama1b_aug" / "aggregated_results.yaml").read_text())
    assert content == json.loads((outputs / "llama1b_aug" / "aggregated_results.json").read_text())
    gsm8k = content["llama1b_aug"]["datasets"]["gsm8k"]
    assert content["llama1b_aug"]["num_seeds"] == 3
    assert gsm8k["accuracy_mean"] == pytest.approx(0.565)
    assert gsm8k["accuracy_std"] == pytest.approx(0.004)
    assert gsm8k["forward_passes_mean"] == pytest.approx(6.9)
    assert gsm8k["forward_passes_std"] == pytest.approx(0.1)
    assert "56.5 (0.4)" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_aggregate_without_files_prints_the_yaml(outputs):
    words = aggregate_words(outputs)[:-4]
    assert list(yaml.safe_load(run(*words).stdout)) == ["llama1b_aug"]


def test_aggregate_defaults_to_the_three_sets(outputs):
    words = ["aggregate_multi_seed.py", "--seed_dirs", str(outputs / "llama1b_aug" / "seed_42")]
    assert list(yaml.safe_load(run(*words).stdout)["llama1b_aug"]["datasets"]) == ["gsm8k", "gsm8k-hard", "svamp"]


def break_nothing_written(outputs: Path, words: list[str]) -> str:
    message = refused(*words)
    assert not list(outputs.rglob("aggregated_results*"))
    return message


def test_aggregate_names_a_missing_and_a_broken_file(outputs):
    path = outputs / "llama1b_aug" / "seed_123" / "results_svamp.yaml"
    path.write_text(path.read_text()[:300])
    assert str(path) in break_nothing_written(outputs, aggregate_words(outputs))
    path.unlink()
    assert f"{path} does not exist" in break_nothing_written(outputs, aggregate_words(outputs))


def test_aggregate_refuses_to_mix_configurations_seeds_and_data(outputs):
    path = result_path(outputs / "llama1b_aug" / "seed_123", "gsm8k")
    write_result(path, make_result(123, correct=569, total=1000, overrides={"loss.alpha2_kv": 2.0}))
    message = break_nothing_written(outputs, [*aggregate_words(outputs)[:5], "--datasets", "gsm8k"])
    assert "loss.alpha2_kv: 1.0 against 2.0" in message
    write_result(path, make_result(42, correct=569, total=1000))
    assert "both hold seed 42" in break_nothing_written(outputs, [*aggregate_words(outputs)[:5], "--datasets", "gsm8k"])
    write_result(path, make_result(123, correct=569, total=1000, data_fingerprint="other"))
    assert "not the same data" in break_nothing_written(outputs, [*aggregate_words(outputs)[:5], "--datasets", "gsm8k"])


def test_aggregate_refuses_names_that_leave_the_directory(outputs):
    assert "not a valid name" in refused("aggregate_multi_seed.py", "--seed_dirs", str(outputs), "--datasets", "../../x; rm -rf ~")


def test_aggregate_into_a_place_that_cannot_be_written(outputs):
    words = aggregate_words(outputs)
    words[-1] = str(outputs / "llama1b_aug" / "seed_42" / "results_svamp.yaml" / "aggregated_results.yaml")
    words[-3] = str(outputs / "a.json")
    assert "cannot write" in refused(*words)


def test_format_results_as_the_guide_types_it(outputs, tmp_path):
    run(*aggregate_words(outputs))
    words = ["--input_dir", "outputs/", "--output_latex", "paper_tables.tex", "--output_csv", "results.csv"]
    run(str(ROOT / "format_results.py"), *words, cwd=tmp_path)
    text = (tmp_path / "paper_tables.tex").read_text(encoding="utf-8")
    assert "LLaMA-3.2-1B & GSM8k-AUG & 56.5 (0.4) & 34.2 (0.6) & 48.3 (0.5)" in text
    assert "ours: KAVA-LLaMA-3.2-1B, 3 seeds" in text
    assert "arXiv 2510.02312, Table 1" in text
    with (tmp_path / "results.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model_name"], row["dataset"], row["num_seeds"]) for row in rows] == [
        ("KAVA-LLaMA-3.2-1B", name, "3") for name in ("gsm8k", "gsm8k-hard", "svamp")
    ]


def test_format_results_without_input(tmp_path):
    latex = ["--output_latex", str(tmp_path / "t.tex")]
    assert "no aggregated_results.yaml below" in refused("format_results.py", "--input_dir", str(tmp_path), *latex)
    assert "is not a directory" in refused("format_results.py", "--input_dir", str(tmp_path / "absent"), *latex)
    assert "--output_latex" in refused("format_results.py", "--input_dir", str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.latex
@pytest.mark.parametrize("standalone", [True, False])
def test_the_tables_compile(outputs, tmp_path, standalone):
    words = aggregate_words(outputs)
    words[words.index("--model_name") + 1] = r"50%_of {it} & #1 $x ~^\end <中文> é"
    run(*words)
    flags = ["--standalone"] if standalone else []
    run("format_results.py", "--input_dir", str(outputs), "--output_latex", str(tmp_path / "paper_tables.tex"), *flags)
    document = tmp_path / "paper_tables.tex"
    if not standalone:
        document = tmp_path / "paper.tex"
        document.write_text("\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n\\input{paper_tables}\n\\end{document}\n")
    done = subprocess.run(
        [shutil.which("pdflatex") or "pdflatex", "-interaction=nonstopmode", "-halt-on-error", document.name],
        cwd=tmp_path, capture_output=True, timeout=100, check=False,
    )  # fmt: skip
    log = done.stdout.decode("latin-1")
    assert done.returncode == 0, log[-2000:]
    assert document.with_suffix(".pdf").stat().st_size > 10_000
    assert "Missing character" not in log
    assert "Overfull" not in log, "a table that leaves the page"


def test_model_configs_list(tmp_path):
    text = run("model_configs.py", "--list").stdout
    for name in ("llama1b_aug", "llama1b_aug_nl", "qwen05b_aug", "qwen05b_aug_nl", "llama3b_aug", "llama3b_aug_nl"):
        assert any(line.split()[:2] == [name, "kava"] for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_model_configs_list_verbose():
    text = run("model_configs.py", "--list", "--verbose").stdout
    part = " ".join(text[text.index("llama3b_aug_nl") :].split())
    stated = ("training.epochs 5.0", "rkv.lambda 0.0", "loss.use_projection false", "latent.num_tokens 24", "training.batch_size 128")
    for setting in stated:
        assert setting in part


def test_model_configs_compare_shows_only_what_differs():
    text = run("model_configs.py", "--compare", "llama1b_aug", "llama3b_aug").stdout
    starts = [line.partition(" ")[0] for line in text.splitlines()]  # a folded value goes on in lines that start with blanks
    keys = {start for start in starts if "." in start}
    assert keys == {"model.name", "loss.alpha1_codi", "loss.alpha2_kv", "loss.layerwise_std", "training.epochs", "training.learning_rate"}
    assert "do not differ" in run("model_configs.py", "--compare", "llama1b_aug", "configs/llama1b_aug.yaml").stdout


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_model_configs_export_loads_to_the_same(tmp_path, kind):
    run("model_configs.py", "--export", str(tmp_path / "configs_backup/"), "--format", kind)
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        assert load_config(tmp_path / "configs_backup" / f"{path.stem}.{kind}") == load_config(path)


def test_model_configs_errors(tmp_path):
    assert "did you mean 'llama1b_aug'" in refused("model_configs.py", "--compare", "llama1b_aug", "llama1b_agu")
    assert "at least two" in refused("model_configs.py", "--compare", "llama1b_aug")
    assert "--list" in refused("model_configs.py")
    # Where there is no configs/, the configurations of the package are listed.
    assert "llama1b_aug_nl" in run(str(ROOT / "model_configs.py"), "--list", cwd=tmp_path).stdout
    (tmp_path / "configs").write_text("a file")
    assert "cannot write" in refused("model_configs.py", "--export", str(tmp_path / "configs" / "x"))


def test_compare_says_per_cell_whether_it_is_within_two_points(outputs):
    write_seed_dirs(outputs / "llama1b_aug", {"svamp": [498, 508, 503]})
    run(*aggregate_words(outputs))
    paper = run("-m", "kava", "compare", str(outputs), "--reference", "paper").stdout
    assert max(map(len, paper.splitlines())) <= 80
    assert "source: arXiv 2510.02312, Table 1" in paper
    guide = [line.split() for line in run("-m", "kava", "compare", str(outputs), "--reference", "guide").stdout.splitlines()]
    assert ["llama1b_aug", "gsm8k", "accuracy", "%", "56.5", "(0.4)", "56.5", "(0.4)", "+0.0", "yes"] in guide
    assert ["llama1b_aug", "gsm8k-hard", "accuracy", "%", "34.2", "(0.6)", "34.2", "(0.6)", "+0.0", "yes"] in guide
    assert ["llama1b_aug", "svamp", "accuracy", "%", "50.3", "(0.5)", "48.3", "(0.5)", "+2.0", "yes"] in guide
    assert ["llama1b_aug", "gsm8k", "passes", "6.9", "(0.1)", "28.3", "(0.8)", "-21.4", "-"] in guide


def test_compare_says_when_there_is_nothing_to_compare_with(tmp_path):
    config = load_config(None, {"model.name": "builtin:mini"})
    write_result(result_path(tmp_path / "seed_1", "gsm8k"), make_result(1, config=config, name="mini"))
    words = ["--seed_dirs", str(tmp_path / "seed_1"), "--datasets", "gsm8k", "--output_yaml", str(tmp_path / "aggregated_results.yaml")]
    run("aggregate_multi_seed.py", *words)
    assert "mini: the paper has no number for it" in run("-m", "kava", "compare", str(tmp_path)).stdout
    assert "no aggregated_results.yaml below" in refused("-m", "kava", "compare", str(tmp_path / "seed_1"))


def test_inspect_shows_where_numbers_come_from(outputs):
    run(*aggregate_words(outputs))
    directory = outputs / "llama1b_aug"
    result = " ".join(run("-m", "kava", "inspect", str(directory / "seed_42" / "results_gsm8k.yaml")).stdout.split())
    expected = ("commit 0123abc", "command_line evaluate.py --eval_dataset gsm8k", "torch 2.13.0", "seed 42", "config.rkv.lambda 0.1")
    for text in expected:
        assert text in result
    for name in ("aggregated_results.yaml", "aggregated_results.json"):
        aggregate = " ".join(run("-m", "kava", "inspect", str(directory / name)).stdout.split())
        assert "provenance.commit 0123abc" in aggregate
        assert "llama1b_aug, seed 456" in aggregate
        assert "config.rkv.lambda" not in aggregate
    path = str(directory / "aggregated_results.yaml")
    long, short = (run("-m", "kava", "inspect", *flags, path).stdout for flags in (["--settings"], []))
    assert "config.rkv.lambda" in long
    # The means, what all seeds share, and what is each seed's own; not every setting and every value three times.
    assert short.count("\n") < 100 < long.count("\n")


def test_inspect_refuses_other_files(tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1\n")
    assert "nor a checkpoint's configuration; 'format' is None" in refused("-m", "kava", "inspect", str(tmp_path / "x.yaml"))
    (tmp_path / "x.yaml").write_text("format: kava.results/1\n")
    assert "is broken" in refused("-m", "kava", "inspect", str(tmp_path / "x.yaml"))
    assert "does not exist" in refused("-m", "kava", "inspect", str(tmp_path / "absent.yaml"))


def test_inspect_shows_a_checkpoints_configuration(tmp_path):
    content = {"format": "kava.checkpoint/1", "method": "kava", "config": load_config(None).to_dict(), "provenance": {"commit": "0123abc"}}
    (tmp_path / "kava_config.json").write_text(json.dumps(content))
    for place in (tmp_path, tmp_path / "kava_config.json"):
        assert "commit 0123abc" in " ".join(run("-m", "kava", "inspect", str(place)).stdout.split())


def test_inspect_shows_explanations_and_benchmarks_without_their_measurements(tmp_path):
    collected = {"commit": "0123abc", "command_line": "kava explain outputs/run"}
    parts = dict.fromkeys(("mean_similarity", "convergence", "interventions"))
    explanation = Explanation(
        method="kava", num_latents=2, num_iterations=1, checkpoint="outputs/run", data="built-in", notes=[], questions=[],
        provenance=collected | {"data_fingerprint": "d41d8cd98f00b204", "config": load_config(None).to_dict()}, **parts,
    )  # fmt: skip
    write_explanation(tmp_path / "explanation.json", explanation)
    shown = " ".join(run("-m", "kava", "inspect", str(tmp_path / "explanation.json")).stdout.split())
    for text in ("command_line kava explain outputs/run", "data_fingerprint d41d8cd98f00b204", "config.rkv.lambda 0.1"):
        assert text in shown
    assert "convergence" not in shown
    write_bench(tmp_path / "bench.json", {"threads": 1}, {"step.speedup": 2.0}, {"step": {"seconds": 1.5}})
    shown = " ".join(run("-m", "kava", "inspect", str(tmp_path / "bench.json")).stdout.split())
    assert "step.speedup 2.0" in shown
    assert "packages.torch" in shown
    assert "step.seconds" not in shown
