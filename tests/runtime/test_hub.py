"""The hub as Hugging Face's own client sees it: a server on this machine, real caches, real downloads, and every cure that is printed."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.hub_server import COMMIT, Hub, running_hub
from helpers.stand_in_hub import fill

MODEL, DATA = "meta-llama/Llama-3.2-1B-Instruct", "openai/gsm8k"
PROGRAM = Path(__file__).parents[1] / "helpers" / "hub_cases.py"


def outcomes(home: Path, endpoint: str, *cases: str, **environment: str) -> list[Any]:
    """What the cases give in a process of their own, whose libraries read HF_HOME and HF_ENDPOINT when they are imported."""
    return [result for result, _ in timed_outcomes(home, endpoint, *cases, **environment)]


def surroundings(home: Path, endpoint: str, environment: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    own = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return (
        kept
        | own
        | {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"}
        | environment
    )


def timed_outcomes(home: Path, endpoint: str, *cases: str, **environment: str) -> list[list[Any]]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *cases], env=surroundings(home, endpoint, environment), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Two models (one gated) and data sets: GSM8K with both its configurations, one with languages, one with its own program."""
    room = tmp_path_factory.mktemp("hub")
    fill(room / "library")
    with running_hub(room / "served") as hub:
        snapshot = next((room / "library" / "models--meta-llama--Llama-3.2-1B-Instruct" / "snapshots").iterdir())
        shutil.copytree(snapshot, hub.repository("models", MODEL), dirs_exist_ok=True)
        gsm8k = hub.repository("datasets", DATA)
        write_configurations(gsm8k, "main", "socratic")
        write_configurations(hub.repository("datasets", "some/languages"), "en", "zh")
        old = hub.repository("datasets", "some/program")
        write_configurations(old, "main")
        (old / "README.md").unlink()
        (old / "program.py").write_text("raise SystemExit")
        for kind, name, status in (("models", "meta-llama/closed", 403), ("datasets", "some/closed", 401)):
            hub.repository(kind, name)
            hub.gated[name] = status
        yield hub


def write_configurations(directory: Path, *names: str) -> None:
    """Rows of every configuration, each with its name in the question, and a README that lists them as the hub's do."""
    listed = []
    for name in names:
        for split, count in (("train", 20), ("test", 3)):
            path = directory / name / f"{split}-00000-of-00001.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [{"question": f"{name} {split} {n}?", "answer": f"<<{n}+1={n + 1}>>\n#### {n + 1}"} for n in range(count)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = "".join(f"\n  - split: {split}\n    path: {name}/{split}-*" for split in ("train", "test"))
        listed.append(f"- config_name: {name}\n  data_files:{files}\n")
    (directory / "README.md").write_text(f"---\nconfigs:\n{''.join(listed)}---\n")


DEAD = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def online(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a machine with a network gets, from an empty cache on; its cache is kept as it is when it holds `socratic` only."""
    room = tmp_path_factory.mktemp("online")
    first = ["model()", f"data('{DATA}:socratic')", f"copy({str(room / 'socratic')!r})", "data()", f"training({DATA!r})"]
    again = [
        "fetch('mark')",
        "model()",
        "data()",
        f"training({DATA!r})",
        f"model(revision={COMMIT!r})",
        f"data('{DATA}@{COMMIT}')",
        "fetch('mark')",
    ]
    closed = ["model('meta-llama/closed')", "data('some/closed')", "model('meta-llama/gone')", "data('some/gone')"]
    odd = ["model(revision='gone')", f"data('{DATA}@gone')", "data('some/languages')", f"data('{DATA}:gone')"]
    odd += ["data('some/languages:zh')", "data('some/program')"]
    broken = ["cut(0)", "[model()]", "cut(1000)", "(model(),)"]
    cases = [*first, *again, *closed, *odd, *broken]
    return dict(zip(cases, outcomes(room / "home", hub.endpoint, *cases), strict=True)) | {"room": room, "asked": list(hub.asked)}


def test_what_the_cache_holds_is_loaded_without_one_request(online: dict[str, Any]) -> None:
    assert (online["model()"], online["data()"]) == (COMMIT, f"{DATA}@{COMMIT} (test)")
    assert online[f"training({DATA!r})"] == [f"{DATA}@{COMMIT} (train)", f"{DATA}@{COMMIT} (train) (last 2 rows)"]
    assert (online[f"model(revision={COMMIT!r})"], online[f"data('{DATA}@{COMMIT}')"]) == (COMMIT, f"{DATA}@{COMMIT} (test)")
    marks = [number for number, request in enumerate(online["asked"]) if request == "GET /mark"]
    assert marks[0] > 10
    assert marks[1] == marks[0] + 1


def test_what_the_hub_refuses_comes_with_the_cure_for_it(online: dict[str, Any], hub: Hub) -> None:
    for case, page in (("model('meta-llama/closed')", "meta-llama/closed"), ("data('some/closed')", "datasets/some/closed")):
        assert f"is gated: accept its licence at {hub.endpoint}/{page}" in online[case]
        assert "`hf auth login`" in online[case]
        assert "mirror" not in online[case]
    assert f"{hub.endpoint} has no model 'meta-llama/gone', or it is private: correct the name" in online["model('meta-llama/gone')"]
    assert f"{hub.endpoint} has no data set 'some/gone', or it is private: correct the name" in online["data('some/gone')"]
    assert f"model '{MODEL}' has no such revision" in online["model(revision='gone')"]
    assert f"data set '{DATA}' has no such revision" in online[f"data('{DATA}@gone')"]
    several = "data set 'some/languages' has several configurations; name one, such as some/languages:en, of en, zh"
    assert online["data('some/languages')"].endswith(several)
    assert online["data('some/languages:zh')"] == f"some/languages@{COMMIT} (test)"
    wrong = f"has no configuration 'gone'; name one, such as {DATA}:main, of main, socratic"
    assert online[f"data('{DATA}:gone')"].endswith(wrong)
    assert online["data('some/program')"] == f"some/program@{COMMIT} (main/test)"


def test_a_half_downloaded_model_is_fetched_and_a_damaged_one_named(online: dict[str, Any], hub: Hub) -> None:
    assert online["[model()]"] == [COMMIT]
    command = re.search(r"its files are damaged; (hf download --force-download \S+)", online["(model(),)"])
    assert command
    home = online["room"] / "home"
    weights = next(home.glob("hub/models--*/snapshots/*/model.safetensors"))
    assert weights.stat().st_size == 1000
    typed(command[1], home, hub.endpoint)
    assert weights.read_bytes() == (hub.repository("models", MODEL) / "model.safetensors").read_bytes()


def test_a_network_that_never_answers_is_asked_once_and_briefly_and_every_cure_works(hub: Hub, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        found = timed_outcomes(tmp_path / "empty", endpoint, "model()", "model('a/b')", "data()", HF_HUB_ETAG_TIMEOUT="1")
    messages = [result for result, _ in found]
    assert all(f"is not in the cache, and {endpoint} cannot be reached" in message for message in messages)
    assert all("set HF_ENDPOINT to a mirror" in message for message in messages)
    assert found[1][1] < 1
    # The mirror is the hub of the other tests. The commands are typed as they are printed, where there is a network.
    for message in (messages[0], messages[2]):
        command = re.search(r"\((hf download [^)]*)\)", message)
        assert command
        typed(command[1], tmp_path / "home", hub.endpoint)
    snapshot = tmp_path / "home" / "hub" / f"datasets--{DATA.replace('/', '--')}" / "snapshots" / COMMIT
    local = next((tmp_path / "home").glob("hub/models--*/snapshots/*"))
    cases = ("model()", "data()", f"training({DATA!r})", f"data('{DATA}:socratic')", f"data({str(snapshot)!r})", f"model({str(local)!r})")
    test, train = (f"{DATA}@{COMMIT} (main/{split})" for split in ("test", "train"))
    path = str((snapshot / "main" / "test-00000-of-00001.jsonl").resolve())
    answers = [COMMIT, test, [train, f"{train} (last 2 rows)"], f"{DATA}@{COMMIT} (socratic/test)", path, None]
    assert outcomes(tmp_path / "home", DEAD, *cases) == answers


def test_only_another_configuration_in_the_cache_is_not_taken_for_main(online: dict[str, Any], tmp_path: Path) -> None:
    held = f"data('{DATA}:socratic')"
    message, answer = outcomes(online["room"] / "socratic", DEAD, "data()", held)
    cure = f"name it {DATA}:socratic, for a named set with --evaluation.datasets.NAME {DATA}:socratic"
    assert f"but for the configuration socratic ({cure})" in message
    assert answer == online[held] == f"{DATA}@{COMMIT} (test)"


def typed(command: str, home: Path, endpoint: str) -> None:
    done = subprocess.run(command, shell=True, env=surroundings(home, endpoint, {}), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
