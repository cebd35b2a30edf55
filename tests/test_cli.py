"""The command line: what answers at once, what exits with which code, and in how many lines."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from kava import __version__, cli
from kava.errors import UserError

SOURCE = Path(cli.__file__).parents[1]
HEAVY = ("torch", "transformers", "peft", "datasets", "scipy", "matplotlib", "pandas", "accelerate")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "COLUMNS": "200"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=environment, check=False)


def run(arguments: list[str], capsys: pytest.CaptureFixture[str], command: str | None = None) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(command, arguments)
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("arguments", [["--help"], [], *([name, "--help"] for name in cli.COMMANDS)], ids=" ".join)
def test_help_is_quick_and_loads_nothing_heavy(arguments: list[str]) -> None:
    script = f"""
import sys
from kava.cli import main
try:
    main(None, {arguments!r})
except SystemExit as stop:
    print("exit", stop.code, *[name for name in {HEAVY!r} if name in sys.modules])
"""
    done = python("-c", script)
    assert done.stdout.splitlines()[-1] == "exit 0", done.stderr
    assert "usage: kava" in done.stdout


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["--help"], capsys)
    assert code == 0
    assert all(f"  {name} " in out and summary in out for name, (_, _, summary) in cli.COMMANDS.items())


def test_commands_stand_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(cli.GROUPS) <= set(cli.COMMANDS)
    assert next(iter(cli.COMMANDS)) in cli.GROUPS
    _, out, _ = run(["--help"], capsys)
    assert all(f"\n\n{title}\n  {name}" in out for name, title in cli.GROUPS.items())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"], capsys) == (0, f"kava {__version__}\n", "")


def test_help_of_train_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["train", "--help"], capsys)
    assert code == 0
    assert "--training.batch_size  integer, at least 1 (default: 128)\n      examples per device in one batch" in out
    assert run(["evaluate", "--help"], capsys)[1].count("--training.") == 0


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(python("-m", "kava", "completion", "bash").stdout)
    code = f"""
source {script}
complete_with() {{
  COMPREPLY=(); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}
  _tyro_kava; echo ${{COMPREPLY[@]}}
}}
complete_with kava rep
complete_with kava train --conf
"""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    commands, options = done.stdout.splitlines()
    assert set(commands.split()) == {name for name in cli.COMMANDS if name.startswith("rep")}, done.stderr
    assert options.split() == ["--config"]


def test_configurations_are_listed_shown_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _, out, _ = run(["configs"], capsys)
    assert "llama1b_aug" in out
    assert "kv_mse" in out
    assert "mini-table1" in out
    copied = run(["configs", "--copy", "ablations/kv_mse"], capsys)[1]
    assert copied == "copied: configs/ablations/kv_mse.yaml\ncopied: configs/llama1b_aug.yaml\n"
    Path("configs/llama1b_aug.yaml").write_text("training: {learning_rate: 0.5}\n")
    assert run(["configs", "--copy", "llama1b_aug"], capsys)[1] == "kept: configs/llama1b_aug.yaml\n"
    assert "learning_rate: 0.5" in run(["configs", "llama1b_aug"], capsys)[1]
    assert "runs:" in run(["configs", "demo"], capsys)[1]
    assert run(["configs", "--copy", "demo"], capsys)[1] == "copied: suites/demo.yaml\n"
    code, _, err = run(["configs", "--copy"], capsys)
    assert (code, err) == (2, "kava: say which configurations to copy: kava configs --copy llama1b_aug\n")


@pytest.mark.parametrize(("own", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_that_wait_give_their_core_away_unless_told_otherwise(own: dict[str, str], policy: str) -> None:
    """OpenMP itself says what it runs with."""
    code = "import kava.cli\ntry: kava.cli.main(arguments=['--help'])\nexcept SystemExit: import torch"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | {"OMP_DISPLAY_ENV": "TRUE"} | own
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    shown = [line.partition("OMP_WAIT_POLICY")[2] for line in done.stderr.splitlines() if "OMP_WAIT_POLICY" in line]
    if not shown:
        pytest.skip("this torch's OpenMP does not show its settings")
    assert all(policy in line for line in shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inference", "--checkpoint", "builtin:mini", "--input_file", "q.txt"], "are for --mode batch; add it, or leave them out"),
        (["reproduce", "demo", "--parallel", "-1"], "parallel is -1; it must be at least 0"),
        (["bench", "--figure", "a.xyz"], "--figure a.xyz is none of .svg, .png, .pdf"),
        (["bench", "--output", "."], "cannot write .: it is a directory"),
        (["benchmark-decoding", "--output", "."], "cannot write .: it is a directory"),
        (["plan", "mini", "--output", "."], "cannot write .: it is a directory"),
        (["plan", "--check", "1", "--output", "."], "cannot write .: it is a directory"),
        (["explain", "builtin:mini", "--output_dir", f"{__file__}/below"], "test_cli.py is a file; choose another output path"),
        (["play", "builtin:mini", "--dataset", "test", "--max_samples", "1", "--port", "70000"], "choose another --port"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if arguments[0] == "play":
        pytest.importorskip("gradio")
    code, out, err = run(arguments, capsys)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]


def test_unknown_command_in_a_real_process() -> None:
    done = python("-m", "kava", "trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "kava: unknown command 'trian'; did you mean 'train'?\n"


def test_unknown_configuration_in_a_real_process() -> None:
    done = python("-m", "kava", "train", "--config", "no_such_config")
    assert done.returncode == 2
    assert done.stderr.startswith("kava: configuration 'no_such_config' is neither a file nor a name in configs/")
    assert len(done.stderr.splitlines()) == 1


def test_unknown_option_of_a_command_without_overrides(probe: type["Probe"], capsys: pytest.CaptureFixture[str]) -> None:
    del probe.overrides
    code, _, err = run(["probe", "--nmae", "x"], capsys)
    assert code == 2
    assert "--nmae" in err


@dataclass
class Probe:
    """Reports what it was called with."""

    name: str = "nobody"
    result: int = 0
    problem: str = ""

    overrides: ClassVar[dict[str, Any]] = {}

    def run(self) -> int | None:
        if self.problem:
            raise {"user": UserError("first line\nsecond line"), "stop": KeyboardInterrupt(), "pipe": BrokenPipeError()}[self.problem]
        print(self.name, dict(getattr(self, "overrides", {})))
        return self.result or None


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> type[Probe]:
    """A command of its own, so that parsing and exit codes are seen without a model."""
    fresh = dataclass(type("Probe", (Probe,), {"overrides": {}, "__doc__": Probe.__doc__}))
    monkeypatch.delattr(Probe, "overrides")
    module = ModuleType("kava_test_probe")
    module.Probe = fresh  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "probe", (module.__name__, "Probe", "test"))
    return fresh


@pytest.mark.usefixtures("probe")
@pytest.mark.parametrize(
    ("arguments", "code", "out"),
    [
        ([], 0, "nobody {}"),
        (["--name", "ada"], 0, "ada {}"),
        (["--result", "1"], 1, "nobody {}"),
        (["--training.batch_size", "64", "--name", "ada"], 0, "ada {'training.batch_size': 64}"),
        (["--name", "ada", "--lora.target_modules", "q", "v"], 0, "ada {'lora.target_modules': ['q', 'v']}"),
        (["--rkv.lambda=0.3"], 0, "nobody {'rkv.lambda': 0.3}"),
        (["--evaluation.datasets.gsm8k-hard", "f.json"], 0, "nobody {'evaluation.datasets.gsm8k-hard': 'f.json'}"),
        (["--dataset.answer_prompt", "The answer is:"], 0, "nobody {'dataset.answer_prompt': 'The answer is:'}"),
    ],
)
def test_options_overrides_and_results(arguments: list[str], code: int, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments, capsys, command="probe") == (code, out + "\n", "")
    assert run(["probe", *arguments], capsys) == (code, out + "\n", "")


@pytest.mark.usefixtures("probe")
@pytest.mark.parametrize(
    ("problem", "code", "err"),
    [("user", 2, "kava: first line second line\n"), ("stop", 130, ""), ("pipe", 141, "")],
)
def test_exit_codes_of_trouble(problem: str, code: int, err: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["probe", "--problem", problem], capsys) == (code, "", err)


@pytest.mark.usefixtures("probe")
def test_stray_words_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["probe", "stray"], capsys)
    assert code == 2
    assert err == "kava: unexpected argument 'stray'; overrides look like --training.batch_size 64\n"


@pytest.mark.usefixtures("probe")
@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--nmae", "'--nmae'; did you mean '--name'?"),
        ("--batch_size", "'--batch_size'; did you mean '--training.batch_size'?"),
        ("--training.batchsize", "'--training.batchsize'; did you mean '--training.batch_size'?"),
        ("--trainning.batch_size", "'--trainning.batch_size'; did you mean '--training.batch_size'?"),
        ("--latent.max_new_tokens", "'--latent.max_new_tokens'; did you mean '--evaluation.max_new_tokens'?"),
    ],
)
@pytest.mark.parametrize("value", [["4"], []])
def test_a_misspelt_option_is_no_key_of_a_file(option: str, hint: str, value: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(["probe", option, *value], capsys)
    assert (code, out, err) == (2, "", f"kava: unknown option {hint}\n")


def _gpu() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB")


def _cpu() -> None:
    import torch

    torch.empty(2**58)


def _python() -> None:
    raise MemoryError


def _on_the_way_out() -> None:
    try:
        _gpu()
    finally:
        raise RuntimeError("capture was broken off")  # what a context manager of torch may do


@pytest.mark.parametrize(
    ("allocate", "reason"),
    [
        (_gpu, "CUDA out of memory"),
        (_cpu, "(can't allocate memory: you tried"),
        (_python, "MemoryError"),
        (_on_the_way_out, "capture was broken off"),
    ],
)
def test_out_of_memory_is_one_sentence_with_a_cure(
    probe: Any, allocate: Any, reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "run", lambda self: allocate())
    code, _, err = run([], capsys, command="probe")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("kava: kava probe ran out of memory (")
    assert reason in err
    assert err.endswith(f"; {cli.LESS_MEMORY}\n")
