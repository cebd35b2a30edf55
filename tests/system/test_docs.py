"""Every command that the documents show is spelled right; those that can run here in seconds do run.

Commands are the lines of fenced shell blocks, and inline code that is a whole command of the project (`python train.py ...`).
"""

import ast
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tyro

from helpers.forked_python import python as forked_python
from helpers.result_files import write_seed_dirs
from helpers.scripts import load_script
from kava.cli import COMMANDS
from kava.config import build_config, config_path, load_config
from kava.config.overrides import parse_overrides

ROOT = Path(__file__).parents[2]
SHELL_BREAKS = {";", "&&", "||", "|", "&", "do", "then"}
# With an argument, at least: `kava inspect` alone names a command and does not call it.
INLINE = re.compile(r"(?<!`)`((?:python3? [\w./-]+\.py|kava [a-z-]+|\./hpc_run_all\.sh|sbatch|make) [^`\n]+)`(?!`)")


DOCS = load_script("check_docs")


@dataclass(frozen=True)
class Shown:
    """One simple command of a document."""

    document: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: {shlex.join(self.words)}"

    @property
    def kava(self) -> tuple[str, list[str]] | None:
        """(command, its arguments) where this is one of the project's own."""
        words = list(self.words)
        if re.fullmatch(r"(.*/)?python3?", words[0]) and len(words) > 1:
            if words[1:3] == ["-m", "kava"] and len(words) > 3:
                return words[3], words[4:]
            if words[1].endswith(".py") and "/" not in words[1]:
                return root_scripts().get(words[1], words[1]), words[2:]
        if words[0] == "kava" and len(words) > 1 and not words[1].startswith("-"):
            return words[1], words[2:]
        return None


@cache
def root_scripts() -> dict[str, str]:
    """Script at the root -> the command it calls, read off its `main("...")`."""
    found = {}
    for path in ROOT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "main" and node.args:
                found[path.name] = ast.literal_eval(node.args[0])
    return found


def simple_commands(block: str) -> list[tuple[str, ...]]:
    """The simple commands of a shell block; our documents need no more of the shell's grammar."""
    commands = []
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        current: list[str] = []
        for word in [*lexer, ";"]:
            if word in SHELL_BREAKS:
                if current and current[0] not in ("for", "done"):
                    commands.append(tuple(current))
                current = []
            else:
                current.append(word)
    return commands


@cache
def shown() -> list[Shown]:
    found: dict[Shown, None] = {}
    for path in DOCS.markdown_files(ROOT):
        text = path.read_text(encoding="utf-8")
        blocks = [body for _, language, body in DOCS.FENCE.findall(text) if language.lower() in DOCS.SHELLS - {"powershell"}]
        for block in [*blocks, *INLINE.findall(DOCS.FENCE.sub("", text))]:
            found |= {Shown(path.relative_to(ROOT).as_posix(), words): None for words in simple_commands(block)}
    return list(found)


def of_the_project() -> list[Shown]:
    return [command for command in shown() if command.kava]


def of_program(pattern: str) -> list[Shown]:
    return [command for command in shown() if re.fullmatch(pattern, command.words[0])]


def test_commands_are_found_in_blocks_loops_and_inline() -> None:
    block = "for s in 1; do\n  python train.py \\\n    --seed $s  # one\ndone\nsource x && kava compare outputs/ | tee y; make demo\n"
    assert simple_commands(block) == [
        ("python", "train.py", "--seed", "$s"),
        ("source", "x"), ("kava", "compare", "outputs/"), ("tee", "y"), ("make", "demo"),
    ]  # fmt: skip
    assert INLINE.findall("a `python train.py --seed 1` b `kava inspect` c `train.py` `sbatch --time=1 x.sh`") == [
        "python train.py --seed 1", "sbatch --time=1 x.sh",
    ]  # fmt: skip
    documents = {command.document for command in of_the_project()}
    assert {"README.md", "README.zh-CN.md"} <= {command.document for command in shown()}
    assert {"docs/REPRODUCTION_GUIDE.zh-CN.md", "docs/QUICK_REFERENCE.md", "docs/quickstart.md"} <= documents


def parsed(command: Shown) -> tuple[Any, dict[str, Any]]:
    """What the command line makes of a command, without running it."""
    assert command.kava is not None
    name, arguments = command.kava
    assert name in COMMANDS, f"{command}: there is no {name}"
    module, attribute, _ = COMMANDS[name]
    command_class: Any = getattr(importlib.import_module(module), attribute)
    # `$seed` of a loop stands for a number where one is asked for.
    arguments = [re.sub(r"^\$\{?seed\}?$", "42", word) for word in arguments if word not in ("...", "[...]")]
    if hasattr(command_class, "arguments"):
        return command_class(), {}  # every option is another program's
    if not hasattr(command_class, "overrides"):
        return tyro.cli(command_class, prog=name, args=arguments, use_underscores=True), {}
    options, rest = tyro.cli(command_class, prog=name, args=arguments, use_underscores=True, return_unknown_args=True)
    return options, parse_overrides(rest)


@pytest.mark.parametrize("command", of_the_project(), ids=str)
def test_flags_configurations_and_overrides_exist(command: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    try:
        options, overrides = parsed(command)
    except SystemExit as stop:
        # `--help` ends the parser with 0; a wrong flag with 2.
        assert stop.code in (0, None), f"{command} does not parse"
        return
    name = getattr(options, "config", None)
    if name in (None, "NAME"):
        build_config({}, str(command), overrides)
    elif name != "configs/YOURS.yaml":
        load_config(config_path(name), overrides)


# Programs whose commands no test runs, and why; those of the project are run, dry-run or parsed by the tests below.
ELSEWHERE = {
    "a cluster's": {".", "module", "conda", "nvidia-smi", "sacct", "sacctmgr", "salloc", "scancel", "scontrol", "sinfo", "squeue", "srun"},
    "several processes; see test_processes.py and test_fsdp.py": {"accelerate", "torchrun"},
    "reaches the network": {"curl", "git", "hf", "pip", ".venv/bin/pip", "ssh", "wandb"},
    "runs until it is stopped, or changes the machine": {
        "jupyter",
        "nohup",
        "scripts/slurm_install.sh",
        "tail",
        "tensorboard",
        "tmux",
        "watch",
    },
    "the shell's": {"cat", "cd", "cp", "echo", "export", "ln", "ls", "mkdir", "source", "which"},
}
OURS = {"./hpc_run_all.sh", "make", "python", "python3", "sbatch"}


def test_every_command_is_run_here_or_has_its_reason() -> None:
    known = OURS.union(*ELSEWHERE.values())
    strangers = [command for command in shown() if not (command.kava or command.words[0] in known or "=" in command.words[0])]
    assert [str(command) for command in strangers if command.words != ("1",)] == []  # the rest of `2>&1 &`


@pytest.mark.parametrize("command", [c for c in shown() if c.words[1:2] == ("-c",) and "load_dataset" not in c.words[2]], ids=str)
def test_lines_of_python_run(command: Shown) -> None:
    done = python(ROOT, *command.words[1:])
    assert done.returncode == 0, done.stderr


def test_optional_packages_are_declared() -> None:
    declared = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M))
    named = {
        name
        for path in DOCS.markdown_files(ROOT)
        for names in re.findall(r"(?:\.|kava|kava-latent)\[([a-z_,]+)\][\"']", path.read_text(encoding="utf-8"))
        for name in names.split(",")
    }
    assert {"wandb", "quant", "notebook", "play"} <= named <= declared


def test_the_range_of_torch_in_documents_is_the_package_s() -> None:
    declared = re.findall(r'"(torch>=[^"]*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = [word for command in shown() for word in command.words if word.startswith("torch>")]
    named += [name for path in DOCS.markdown_files(ROOT) for name in re.findall(r"'(torch>=[^']*)'", path.read_text(encoding="utf-8"))]
    assert set(named) == set(declared)


def shell(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("command", of_program("make"), ids=str)
def test_make_targets_exist(command: Shown) -> None:
    done = shell("make", "-n", *command.words[1:])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", of_program(r"\./hpc_run_all\.sh"), ids=str)
def test_cluster_submission_in_a_dry_run(command: Shown) -> None:
    words = ["llama1b_aug" if word == "<config>" else word for word in command.words[1:]]
    done = shell("bash", "hpc_run_all.sh", "--dry-run", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "submit_multi_seed.slurm" in done.stdout
    assert "submit_aggregate.slurm" in done.stdout


@pytest.mark.parametrize("command", [c for c in of_program("sbatch") if c.words[-1].endswith((".sh", ".slurm"))], ids=str)
def test_exported_variables_are_read_by_the_script(command: Shown) -> None:
    script = (ROOT / command.words[-1]).read_text(encoding="utf-8")
    for option in command.words[1:-1]:
        assert option.startswith("--"), option
        if option.startswith("--export="):
            for item in option.removeprefix("--export=").split(","):
                variable, _, value = item.partition("=")
                assert variable == "ALL" or f"${{{variable}:-" in script, f"{command}: {variable} is not read"
                if variable == "CONFIG" and not value.startswith("$") and value != "x":
                    assert (ROOT / f"configs/{value}.yaml").is_file()


def test_powershell_parameters_are_declared() -> None:
    declared = set(re.findall(r"\]\$(\w+)", (ROOT / "run_multi_seed.ps1").read_text(encoding="utf-8")))
    lines = [
        line
        for path in DOCS.markdown_files(ROOT)
        for line in re.findall(r"\\run_multi_seed\.ps1([^`\n]*)", path.read_text(encoding="utf-8"))
    ]
    used = {name for line in lines for name in re.findall(r"\s-(\w+)", line)}
    assert used
    assert used <= declared


@pytest.mark.parametrize("script", sorted(root_scripts().keys() & {c.words[1] for c in of_the_project()}))
def test_scripts_that_documents_name_answer_help(script: str) -> None:
    done = python(ROOT, script, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: kava {root_scripts()[script]}" in done.stdout


def python(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200", "KAVA_CACHE": str(directory / "cache")}
    command = [forked_python(), *words]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=500, check=False)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory like the repository's root, with the results of three seeds that the guide's steps 1 and 2 leave."""
    root = tmp_path_factory.mktemp("checkout")
    for path in [*ROOT.glob("*.py"), ROOT / "configs", ROOT / "suites", ROOT / "src"]:
        (root / path.name).symlink_to(path)
    correct = {"gsm8k": [561, 569, 565], "gsm8k-hard": [336, 348, 342], "svamp": [478, 488, 483]}
    for name in ("llama1b_aug", "llama1b_aug_multi_seed"):
        write_seed_dirs(root / "outputs" / name, correct)
    return root


READING = ("aggregate", "format-results", "compare", "inspect", "model-configs")


def test_commands_that_read_results_and_configurations_run(checkout: Path) -> None:
    """In the guide's order: aggregation comes first, for the others read what it writes."""
    runnable = [c for c in of_the_project() if c.kava and c.kava[0] in READING and not set(c.words) & {"A", "<config>", "..."}]
    runnable.sort(key=lambda c: READING.index(c.kava[0]) if c.kava else 0)
    assert {c.kava[0] for c in runnable if c.kava} == set(READING)
    seeds = [str(checkout / "outputs/llama1b_aug_multi_seed" / f"seed_{seed}") for seed in (42, 123, 456)]
    target = str(checkout / "outputs/llama1b_aug_multi_seed/aggregated_results.yaml")
    assert python(checkout, "aggregate_multi_seed.py", "--seed_dirs", *seeds, "--output_yaml", target).returncode == 0
    for name, arguments in dict.fromkeys((c.kava[0], tuple(c.kava[1])) for c in runnable if c.kava):
        done = python(checkout, "-m", "kava", name, *arguments)
        assert done.returncode == 0, f"kava {name} {shlex.join(arguments)}: {done.stderr}"
    for written in ("paper_tables.tex", "results.csv", "outputs/llama1b_aug/aggregated_results.json", "configs_backup/mini.yaml"):
        assert (checkout / written).stat().st_size > 0


@pytest.mark.slow
def test_the_chain_in_small_runs_as_typed(checkout: Path) -> None:
    """Train, evaluate, ask: the block of quickstart.md that trains for 30 steps."""
    chain = [c for c in shown() if c.document == "docs/quickstart.md" and any(word.startswith("outputs/try") for word in c.words)]
    assert [c.words[1] for c in chain] == ["train.py", "evaluate.py", "inference.py"]
    answers = []
    for command in chain:
        done = python(checkout, *command.words[1:])
        assert done.returncode == 0, f"{command}: {done.stderr}"
        answers.append(done.stdout)
    assert "trained 30 steps" in answers[0]
    assert "kava on test (20 questions)" in answers[0]
    assert "kava on test (20 questions)" in answers[1]
    assert (checkout / "outputs/try/results_test.yaml").is_file()
    assert '"forward_passes"' in answers[2]


NOT_IN_GIT = ("data/", "outputs/", "checkpoints/", "logs/", "wandb/", "models/", ".venv/", "site/")


def tracked() -> list[str]:
    done = shell("git", "ls-files")
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.split()


def test_the_inventory_names_what_is_there() -> None:
    named = set(re.findall(r"`([\w.-][\w./-]*)`", (ROOT / "docs/PROJECT_INVENTORY.md").read_text(encoding="utf-8")))
    paths = [name for name in named if "/" in name and not name.startswith(NOT_IN_GIT)]
    assert [name for name in sorted(paths) if not (ROOT / name).exists()] == []
    files = {name for name in tracked() if "/" not in name or name.startswith(("configs/", "suites/", "docs/", "scripts/"))}
    folders = tuple(name for name in named if re.fullmatch(r"(configs|docs)/\w+/", name))
    assert [name for name in sorted(files - named) if not name.startswith(folders)] == []


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_first_page_leads_to_the_inventory(page: str) -> None:
    assert "(docs/PROJECT_INVENTORY.md)" in (ROOT / page).read_text(encoding="utf-8")


def shell_lines(page: str) -> list[str]:
    blocks = [body for _, language, body in DOCS.FENCE.findall(page) if language == "bash"]
    return [re.sub(r"\s*#.*", "", line) for block in blocks for line in block.splitlines()]


def test_both_first_pages_say_the_same() -> None:
    """The Chinese page shows the commands, the numbers and the test files of the English one."""
    english, chinese = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "README.zh-CN.md"))
    assert shell_lines(english) == shell_lines(chinese)
    for pattern in (r"\d+\.\d(?: \(\d\.\d\))?", r"tests/\w+/\w+\.py", r"docs/[\w.-]+\.md", r"<!-- measured:\S+ -->"):
        assert set(re.findall(pattern, english)) == set(re.findall(pattern, chinese))
