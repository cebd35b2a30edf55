"""Result files that were cut, flipped or edited: what reads them says so in one line, and writes nothing by halves."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import strategies as st
from torch.utils.tensorboard import SummaryWriter

from helpers.fuzz_command import half_written, kava
from helpers.fuzz_inputs import INPUTS, damage, edited, fuzz
from helpers.result_files import make_row, write_seed_dirs
from helpers.tiny import lora_config, mini_builder, mini_examples, mini_model
from kava.explain.explain import Options, explain
from kava.explain.record import EXPLANATION, write_explanation
from kava.generate import Reasoner
from kava.results import read_result, rows_path, write_result, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]

KEYS = ("format", "dataset", "metrics", "accuracy", "correct", "total", "run", "config", "seed", "name", "runs", "provenance", "datasets")


class Place:
    """Two seeds with their results, rows, event files and an explanation, and what commands make of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.made, self.outputs = root, root / "made", root / "outputs"
        self.seeds = write_seed_dirs(self.outputs / "tiny", {"gsm8k": [3, 2], "svamp": [1, 2]}, seeds=(1, 2))
        for seed in self.seeds:
            for result in seed.glob("results_*.yaml"):
                answers = write_rows(rows_path(result), [make_row(number, steps=1 + number % 2) for number in range(4)])
                write_result(result, read_result(result).model_copy(update={"answers": answers}))
            writer = SummaryWriter(str(seed / "logs"))
            writer.add_scalar("train/loss", 1.0, 1)
            writer.close()
        self.run("aggregate")
        self.made.joinpath("aggregate.yaml").rename(self.outputs / "tiny" / "aggregated_results.yaml")
        self.made.joinpath("aggregate.json").rename(self.outputs / "tiny" / "aggregated_results.json")
        options = Options("outputs/tiny", "built-in", details=1, max_new_tokens=2, say=lambda text: None)
        explanation = explain(Reasoner(mini_model(), mini_builder(), 2, 1), lora_config(), list(mini_examples(3)), options)
        write_explanation(self.outputs / "tiny" / "explain" / EXPLANATION, explanation)
        self.whole = {path: path.read_bytes() for path in sorted(self.outputs.rglob("*")) if path.is_file()}

    def run(self, command: str, file: Path | None = None) -> int:
        """One command over the outputs; what it makes is all there, or none of it is."""
        shutil.rmtree(self.made, ignore_errors=True)
        both = {suffix: str(self.made / f"{command}.{suffix}") for suffix in ("yaml", "json", "tex", "csv", "html")}
        words = {
            "inspect": ["inspect", str(file)],
            "aggregate": ["aggregate", "--seed_dirs", *map(str, self.seeds), "--datasets", "gsm8k", "svamp",
                          "--output_yaml", both["yaml"], "--output_json", both["json"]],
            "format-results": ["format-results", "--input_dir", str(self.outputs),
                               "--output_latex", both["tex"], "--output_csv", both["csv"]],
            "compare": ["compare", str(self.outputs)],
            "report": ["report", str(self.outputs), "--output", both["html"]],
        }[command]  # fmt: skip
        code, _, _ = kava(*words)
        made = sorted(path.suffix for path in self.made.iterdir()) if self.made.exists() else []
        expected = {"aggregate": [".json", ".yaml"], "format-results": [".csv", ".tex"], "report": [".html"]}
        assert made == (expected.get(command, []) if code == 0 else [])
        assert half_written(self.root) == []
        return code

    def spoil(self, path: Path, content: bytes) -> None:
        for other, whole in self.whole.items():
            if other.read_bytes() != whole:
                other.write_bytes(whole)
        path.write_bytes(content)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("fuzz"))
    for path in place.whole:
        if path.suffix == ".yaml" or path.name.startswith("aggregated"):
            assert place.run("inspect", path) == 0
    assert [place.run(command) for command in ("aggregate", "format-results", "compare", "report")] == [0] * 4
    return place


def command_for(path: Path) -> list[str]:
    """What reads a file."""
    if path.name.startswith("aggregated"):
        return ["inspect", "format-results", "compare"] if path.suffix == ".yaml" else ["inspect"]
    return ["inspect", "inspect", "aggregate"] if path.suffix == ".yaml" else ["report"]


def test_damaged_files(place: Place) -> None:
    paths = st.sampled_from([path for path in place.whole if path.name.startswith(("results_", "aggregated")) and path.suffix != ".jsonl"])
    pairs = paths.flatmap(lambda path: st.tuples(st.just(path), st.sampled_from(command_for(path))))

    @fuzz(INPUTS["result files damaged"], pair=pairs, change=damage())
    def check(pair: tuple[Path, str], change: Callable[[bytes], bytes]) -> None:
        path, command = pair
        place.spoil(path, change(place.whole[path]))
        place.run(command, path)


def test_edited_files(place: Place) -> None:
    """As YAML and as JSON; the numbers may be impossible, the texts may be markup, the structure may have no end."""
    files = [path for path in place.whole if path.name in ("results_gsm8k.yaml", "aggregated_results.yaml", "aggregated_results.json")]
    texts = st.one_of(*(st.tuples(st.just(path), edited(yaml.safe_load(place.whole[path]), KEYS)) for path in files))

    @fuzz(INPUTS["result files edited"], edit=texts, data=st.data())
    def check(edit: tuple[Path, str], data: st.DataObject) -> None:
        path, text = edit
        place.spoil(path, text.encode("utf-8", "surrogatepass"))
        place.run(data.draw(st.sampled_from(command_for(path))), path)


def test_reports(place: Place) -> None:
    """A page of everything leaves out what is broken and names it."""
    paths = [path for path in place.whole if path.suffix in (".jsonl", ".yaml", ".json") or path.name.startswith("events")]
    documents = [path for path in paths if path.suffix in (".json", ".yaml")]
    changes = st.tuples(st.sampled_from(paths), damage())
    edits = st.sampled_from(documents).flatmap(lambda path: st.tuples(st.just(path), edited(yaml.safe_load(place.whole[path]), KEYS)))

    explained, away = place.outputs / "tiny" / "explain", place.root / "explain"

    @fuzz(INPUTS["reports"], change=changes | edits)
    def check(change: tuple[Path, Callable[[bytes], bytes] | str]) -> None:
        path, how = change
        place.spoil(path, how.encode("utf-8", "surrogatepass") if isinstance(how, str) else how(place.whole[path]))
        # Half of the time goes into the figures of an explanation: drawn where that is what was spoilt.
        if explained not in path.parents:
            explained.rename(away)
        try:
            place.run("report")
        finally:
            if away.exists():
                away.rename(explained)


@pytest.mark.parametrize("text", ["provenance: &a {x: *a}", "a: &a [*a]", "b: {c: &a {d: [*a]}}"])
def test_documents_without_an_end(place: Place, text: str) -> None:
    path = next(path for path in place.whole if path.name == "results_gsm8k.yaml")
    content = yaml.safe_load(place.whole[path])
    content.pop("provenance")
    place.spoil(path, (yaml.safe_dump(content) + text + "\n").encode())
    assert [place.run(command, path) for command in ("inspect", "aggregate")] == [2, 2]


def test_a_bomb_of_references_is_refused_at_once(place: Place) -> None:
    """Nine lines that mean 10^9 values."""
    path = next(path for path in place.whole if path.name == "results_gsm8k.yaml")
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]", *(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 9))]
    place.spoil(path, "\n".join(lines).encode())
    assert place.run("inspect", path) == 2


def test_the_json_reader_keeps_the_last_of_two_equal_keys(place: Place) -> None:
    """A document that says a thing twice is not refused, and means what it says last, as everywhere in Python."""
    path = next(path for path in place.whole if path.name == "aggregated_results.json")
    content = json.loads(place.whole[path])
    place.spoil(path, ('{"tiny": 1, ' + json.dumps(content)[1:]).encode())
    assert place.run("inspect", path) in (0, 2)
