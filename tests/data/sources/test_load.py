"""Names to data: files, directories, saved data sets, the hub's cache, splits and what is held out."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.loading import load_examples, train_validation
from kava.config import Config, MiniDataConfig
from kava.data.sources.load import load_benchmark
from kava.errors import UserError
from kava.evaluate.questions import load_questions

MINI = MiniDataConfig(num_train=60, num_eval=20)


def aug_rows(name: str, count: int) -> list[dict]:
    return [{"question": f"{name} {n}?", "steps": [f"<<{n}+1={n + 1}>>"], "answer": str(n + 1)} for n in range(count)]


def gsm8k_rows(name: str, count: int) -> list[dict]:
    return [{"question": f"{name} {n}?", "answer": f"It is <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"} for n in range(count)]


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A directory as people keep them: GSM8K, the iCoT text form, GSM-Hard, SVAMP and a README that quotes a line."""
    write_lines(tmp_path / "gsm8k_train.jsonl", gsm8k_rows("train", 30))
    write_lines(tmp_path / "gsm8k_test.jsonl", gsm8k_rows("test", 4))
    (tmp_path / "gsm8k_aug_valid.txt").write_text("".join(f"train {n}?||<<{n}+1=2>> #### {n + 1}\n" for n in (3, 5)), encoding="utf-8")
    (tmp_path / "gsm8k_aug_test.txt").write_text("test 0?||<<0+1=1>> #### 1\n", encoding="utf-8")
    write_lines(tmp_path / "gsm8k_hard.jsonl", [{"input": "hard?", "code": "", "target": 1.5}])
    (tmp_path / "svamp.json").write_text(json.dumps([{"Body": "b", "Question": "q", "Answer": 2.0}]), encoding="utf-8")
    (tmp_path / "README.md").write_text("# Data\nlike\n`question||<<a>> #### answer`\nand so on\n", encoding="utf-8")
    return tmp_path


def test_a_directory_gives_the_file_of_the_split(mixed: Path) -> None:
    for split in ("train", "training"):
        assert load_examples(str(mixed), split, cot_type="equation").source == str(mixed / "gsm8k_train.jsonl")
    for split in ("validation", "valid", "dev", "val"):
        assert load_examples(str(mixed), split, cot_type="equation").source == str(mixed / "gsm8k_aug_valid.txt")
    assert load_examples(str(mixed), "test", cot_type="natural_language").source == str(mixed / "gsm8k_test.jsonl")
    with pytest.raises(UserError, match=r"several files for split 'test': gsm8k_aug_test.txt, gsm8k_test.jsonl; .*name the file itself"):
        load_examples(str(mixed), "test", cot_type="equation")
    with pytest.raises(
        UserError, match=r"no file for split 'validation' with natural_language steps; it holds gsm8k_aug_test \(icot\)"
    ) as caught:
        load_examples(str(mixed), "validation", cot_type="natural_language")
    assert "README" not in str(caught.value)


def test_training_leaves_the_validation_questions_out(mixed: Path) -> None:
    train, validation = train_validation(str(mixed), cot_type="equation")
    assert [example.question for example in validation.examples] == ["train 3?", "train 5?"]
    assert len(train.examples) == 28
    assert not {example.question for example in train.examples} & {"train 3?", "train 5?"}
    assert train.note == "2 rows left out that ask a validation question"
    limited, _ = train_validation(str(mixed), cot_type="equation", limit=4)
    assert [example.question for example in limited.examples] == ["train 0?", "train 1?", "train 2?", "train 4?"]


def test_without_a_validation_file_the_last_tenth_is_held_out(mixed: Path) -> None:
    for name in (mixed, mixed / "gsm8k_train.jsonl"):
        train, validation = train_validation(str(name), cot_type="natural_language")
        assert [example.question for example in validation.examples] == ["train 27?", "train 28?", "train 29?"]
        assert [example.question for example in train.examples] == [f"train {n}?" for n in range(27)]
        assert train.note == "the last 3 rows are held out for validation"
        assert train.fingerprint != validation.fingerprint


def test_held_out_are_at_most_500_and_repeats_leave_train(tmp_path: Path) -> None:
    rows = gsm8k_rows("q", 6000)
    rows[0]["question"] = "q  5999? "
    train, validation = train_validation(str(write_lines(tmp_path / "all.jsonl", rows)), cot_type="equation", limit=100)
    assert len(validation.examples) == 500
    assert [example.question for example in train.examples] == [f"q {n}?" for n in range(1, 101)]
    with pytest.raises(UserError, match="9 usable rows, too few to hold out a tenth"):
        train_validation(str(write_lines(tmp_path / "few.jsonl", rows[:9])), cot_type="equation")


def test_benchmarks_are_found_in_a_directory(mixed: Path) -> None:
    assert load_benchmark("gsm8k", str(mixed)).source == str(mixed / "gsm8k_test.jsonl")
    assert load_benchmark("gsm8k", str(mixed), limit=2).examples[1].id == "gsm8k_test/test/2"
    assert load_benchmark("gsm8k-hard", str(mixed)).examples[0].answer == "1.5"
    assert load_benchmark("svamp", str(mixed)).note == "1 problems in SVAMP's form"
    (mixed / "gsm8k_test.jsonl").unlink()
    assert load_benchmark("gsm8k", str(mixed)).source == str(mixed / "gsm8k_aug_test.txt")
    (mixed / "gsm8k_aug_test.txt").unlink()
    with pytest.raises(UserError, match=r"no file for benchmark 'gsm8k'; it holds gsm8k_aug_valid \(icot\), gsm8k_hard \(gsm-hard\)"):
        load_benchmark("gsm8k", str(mixed))


def test_the_svamp_note_says_which_part(tmp_path: Path) -> None:
    rows = [{"Body": f"b {n}", "Question": "q", "Answer": n} for n in range(1000)]
    (tmp_path / "svamp.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "part.json").write_text(json.dumps(rows[:300]), encoding="utf-8")
    assert load_benchmark("svamp", str(tmp_path / "svamp.json"), limit=5).note == "all 1,000 problems of SVAMP"
    assert load_benchmark("svamp", str(tmp_path / "part.json")).note == "the test part of SVAMP, 300 problems"


def test_another_benchmark_is_the_test_split_of_its_source(tmp_path: Path) -> None:
    write_lines(tmp_path / "own_test.jsonl", aug_rows("own", 3))
    assert [example.answer for example in load_benchmark("own", str(tmp_path)).examples] == ["1", "2", "3"]
    assert load_benchmark("mini-larger", "builtin:mini/larger", mini=MINI, limit=4).source == "builtin:mini/larger"


def test_a_downloaded_hub_directory_with_shards(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = aug_rows("shard", 6)
    (tmp_path / "data").mkdir()
    (tmp_path / ".cache").mkdir()
    write_lines(tmp_path / ".cache" / "train.jsonl", aug_rows("hidden", 2))
    for index, part in enumerate((rows[:4], rows[4:])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), tmp_path / "data" / f"train-{index:05d}-of-00002.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(aug_rows("v", 1)), tmp_path / "data" / "validation-00000-of-00001.parquet")
    train, validation = train_validation(str(tmp_path), cot_type="equation")
    assert [example.question for example in train.examples] == [f"shard {n}?" for n in range(6)]
    next((tmp_path / "data").glob("train-00001-*")).unlink()
    with pytest.raises(UserError, match="has 1 of the 2 parts of 'data/train'; copy or download the others"):
        train_validation(str(tmp_path), cot_type="equation")
    assert train.examples[-1].id == "data/train/train/6"
    assert [example.question for example in validation.examples] == ["v 0?"]


@pytest.mark.parametrize("other", ["test", "test-00000-of-00001"])
def test_a_split_that_is_there_twice_is_refused(tmp_path: Path, other: str) -> None:
    """In other numbers of files, so that each row would be read twice."""
    rows = gsm8k_rows("test", 4)
    for name, part in ((other, rows), ("test-00000-of-00002", rows[:2]), ("test-00001-of-00002", rows[2:])):
        write_lines(tmp_path / f"{name}.jsonl", part)
    for benchmark in ("gsm8k", "mine"):
        with pytest.raises(UserError, match=f"several files for .*: {other}.jsonl, test-00000-of-00002.jsonl; keep one of them"):
            load_benchmark(benchmark, str(tmp_path))


def test_a_saved_dataset_dict(tmp_path: Path) -> None:
    import datasets

    splits = {"train": aug_rows("t", 12), "validation": aug_rows("v", 2), "test": aug_rows("e", 3)}
    datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(str(tmp_path / "saved"))
    train, validation = train_validation(str(tmp_path / "saved"), cot_type="equation", validation_split="dev")
    assert (len(train.examples), len(validation.examples)) == (12, 2)
    assert train.examples[0].id == "saved/train/1"
    assert load_benchmark("gsm8k", str(tmp_path / "saved")).source == f"{tmp_path / 'saved'} (test)"
    with pytest.raises(UserError, match="has no split 'larger'; it has train, validation, test"):
        load_examples(str(tmp_path / "saved"), "larger", cot_type="equation")


def test_a_saved_dataset_without_splits(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(aug_rows("t", 20)).save_to_disk(str(tmp_path / "one"))
    train, validation = train_validation(str(tmp_path / "one"), cot_type="equation")
    assert (len(train.examples), len(validation.examples)) == (18, 2)
    for arrow in (tmp_path / "one").glob("*.arrow"):
        arrow.write_bytes(b"broken")
    with pytest.raises(UserError, match=r"saved data set .*one cannot be read"):
        load_examples(str(tmp_path / "one"), "train", cot_type="equation")


def test_missing_paths_list_what_is_there(mixed: Path) -> None:
    with pytest.raises(UserError, match=rf"data path {mixed}/nope.jsonl does not exist; {mixed} holds README.md, gsm8k_aug_test.txt"):
        load_examples(str(mixed / "nope.jsonl"), "train", cot_type="equation")
    (mixed / "empty").mkdir()
    with pytest.raises(UserError, match=r"no file for split 'train'; it holds no file of a known format"):
        load_examples(str(mixed / "empty"), "train", cot_type="equation")


def test_builtin_names() -> None:
    assert load_examples("builtin:mini", "dev", cot_type="equation", mini=MINI).source == "builtin:mini/validation"
    assert load_examples("builtin:mini/larger", "train", cot_type="equation", mini=MINI).source == "builtin:mini/larger"
    train, validation = train_validation("builtin:mini", cot_type="natural_language", mini=MINI, limit=10)
    assert (len(train.examples), len(validation.examples)) == (10, 20)
    with pytest.raises(UserError, match="has no split 'tset'; did you mean 'test'"):
        load_examples("builtin:mini/tset", "train", cot_type="equation", mini=MINI)
    with pytest.raises(UserError, match="no built-in data set 'builtin:maxi'"):
        load_examples("builtin:maxi", "train", cot_type="equation", mini=MINI)
    with pytest.raises(UserError, match="names one split, but training needs two; use 'builtin:mini'"):
        train_validation("builtin:mini/test", cot_type="equation", mini=MINI)


def run_offline(home: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own: `datasets` reads HF_HOME and HF_HUB_OFFLINE once, on import."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment = kept | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


LOAD = """
from helpers.loading import train_validation
from kava.data.sources.load import load_benchmark
from kava.errors import UserError
try:
    {call}
except UserError as error:
    print("UserError:", error)
"""


def test_an_unreachable_hub_names_the_three_cures(tmp_path: Path) -> None:
    done = run_offline(tmp_path, LOAD.format(call="train_validation('whynlp/gsm8k-aug', cot_type='equation')"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("UserError: data set 'whynlp/gsm8k-aug' is not in the cache, and HF_HUB_OFFLINE is set: unset it, ")
    # `hf download` and not `load_dataset`, which fails where a data set has several configurations. `test_hub` runs what is printed.
    for cure in ("set HF_ENDPOINT to a mirror", "hf download --repo-type dataset whynlp/gsm8k-aug", "give a local file or directory"):
        assert cure in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_snapshot_that_was_downloaded_beforehand_is_used_offline(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "datasets--whynlp--gsm8k-aug"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for split, count in (("train", 12), ("validation", 2), ("test", 3)):
        write_lines(repository / "snapshots" / commit / f"{split}.jsonl", aug_rows(split, count))
    call = (
        "train, valid = train_validation('whynlp/gsm8k-aug', cot_type='equation'); "
        "print(len(train.examples), len(valid.examples), len(load_benchmark('gsm8k', 'whynlp/gsm8k-aug').examples))"
    )
    done = run_offline(tmp_path, LOAD.format(call=call))
    assert done.stdout == "12 2 3\n", done.stderr


def test_the_cache_that_load_dataset_filled_is_used_offline(tmp_path: Path) -> None:
    """Fill the cache from local files, then rename it to what the hub's name gives."""
    for split, count in (("train", 12), ("test", 3)):
        write_lines(tmp_path / "gsm8k" / f"{split}.jsonl", gsm8k_rows(split, count))
    filled = run_offline(tmp_path / "home", f"import datasets; datasets.load_dataset({str(tmp_path / 'gsm8k')!r})")
    assert filled.returncode == 0, filled.stderr
    cache = tmp_path / "home" / "datasets"
    next(path for path in cache.iterdir() if path.is_dir()).rename(cache / "openai___gsm8k")
    call = (
        "train, valid = train_validation('openai/gsm8k', cot_type='equation'); "
        "print(len(train.examples), len(valid.examples), load_benchmark('gsm8k', 'openai/gsm8k').source, train.examples[0].id)"
    )
    done = run_offline(tmp_path / "home", LOAD.format(call=call))
    assert done.stdout == "11 1 openai/gsm8k (test) openai/gsm8k/train/1\n", done.stdout + done.stderr


def test_a_data_directory_is_used_or_refused(mixed: Path, tmp_path: Path) -> None:
    """Also for names that the checkpoint's configuration does not list, and over a source of its own."""
    write_lines(tmp_path / "elsewhere.jsonl", gsm8k_rows("test", 2))
    listed = Config(evaluation={"datasets": {"gsm8k": str(tmp_path / "elsewhere.jsonl")}})  # type: ignore[arg-type]
    unlisted = Config(evaluation={"datasets": {"test": "builtin:mini/test"}})  # type: ignore[arg-type]
    assert load_questions(listed, "gsm8k", None).source == str(tmp_path / "elsewhere.jsonl")
    for config in (listed, unlisted):
        assert load_questions(config, "gsm8k", str(mixed)).source == str(mixed / "gsm8k_test.jsonl")
    for config, name in ((unlisted, "test"), (unlisted, "builtin:mini/test"), (unlisted, str(tmp_path / "elsewhere.jsonl"))):
        with pytest.raises(UserError, match="says itself where its questions are: leave --data_dir .* out"):
            load_questions(config, name, str(mixed))


def test_a_directory_of_training_data_answers_for_the_sets_that_it_names_alone(mixed: Path, tmp_path: Path) -> None:
    """Somebody's own `test.jsonl` is not GSM8K's, and what the user configured is not passed over."""
    own = tmp_path / "gsm8k-work" / "own"
    for split, count in (("train", 20), ("test", 3)):
        write_lines(own / f"{split}.jsonl", aug_rows(split, count))
        write_lines(tmp_path / "gsm8k-aug" / f"{split}.jsonl", aug_rows(split, count))
    hub = {"gsm8k": "openai/gsm8k"}

    def source(name: Path, datasets: dict[str, str]) -> str:
        config = Config(dataset={"name": str(name)}, evaluation={"datasets": datasets})  # type: ignore[arg-type]
        return load_questions(config, next(iter(datasets)), None).source

    assert source(mixed, hub) == str(mixed / "gsm8k_test.jsonl")
    assert source(tmp_path / "gsm8k-aug", hub) == str(tmp_path / "gsm8k-aug" / "test.jsonl")
    for datasets in (hub, {"gsm8k": "somebody/gsm8k-platinum"}, {"mine": "somebody/other"}):
        with pytest.raises(UserError, match=next(iter(datasets.values()))):
            source(own, datasets)


def test_every_named_set_is_found_in_the_directory_of_training_data(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also sets that the configuration does not list, a directory given by `~` or by `.`, and sets that have a directory of their own."""
    write_lines(mixed / "multiarith_test.jsonl", [{"question": "q?", "final_ans": "3"}])
    (mixed / "addsub").mkdir()
    write_lines(mixed / "addsub" / "test.jsonl", [{"question": "q?", "answer": "3"}])
    monkeypatch.setenv("HOME", str(mixed.parent))
    monkeypatch.chdir(mixed / "addsub")
    for name, dataset, file in (
        (str(mixed), "multiarith", "multiarith_test.jsonl"),
        (f"~/{mixed.name}", "gsm8k", "gsm8k_test.jsonl"),
        (".", "addsub", "addsub/test.jsonl"),
    ):
        assert load_questions(Config(dataset={"name": name}), dataset, None).source == str(mixed / file)  # type: ignore[arg-type]


def test_a_compressed_file_is_to_be_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"question": "q?", "answer": "#### 1"}'))
    with pytest.raises(UserError, match=f"{path} is compressed; unpack it.*gunzip -k {path}"):
        load_benchmark("mine", str(path))
    subprocess.run(["gunzip", "-k", path], check=True)
    assert load_benchmark("mine", str(path.with_suffix(""))).examples


def test_rows_of_another_named_set_are_refused(mixed: Path) -> None:
    for name, file in (("svamp", "gsm8k_test.jsonl"), ("gsm8k", "gsm8k_hard.jsonl"), ("gsm8k-hard", "svamp.json")):
        with pytest.raises(UserError, match=f"rows of the layout .*, not of '{name}'"):
            load_benchmark(name, str(mixed / file))
    assert load_benchmark("mine", str(mixed / "svamp.json")).examples


def test_a_language_is_no_part_of_a_word(tmp_path: Path) -> None:
    rows = [{"question": "q?", "answer": None, "answer_number": 3, "equation_solution": None}]
    path = write_lines(tmp_path / "mgsm_test.jsonl", rows)
    with pytest.raises(UserError, match="mgsm-te"):
        load_benchmark("mgsm-te", str(tmp_path))
    path.rename(tmp_path / "mgsm_te.jsonl")
    assert load_benchmark("mgsm-te", str(tmp_path)).examples


def test_a_split_is_found_by_its_whole_name_and_a_misspelt_one_is_refused(tmp_path: Path) -> None:
    for split in ("train_sft", "held_out", "validation"):
        write_lines(tmp_path / f"{split}.jsonl", aug_rows(split, 20))
    train, validation = train_validation(str(tmp_path), train_split="train_sft", validation_split="held_out")
    assert (train.examples[0].question, validation.examples[0].question) == ("train_sft 0?", "held_out 0?")
    with pytest.raises(UserError, match="no file for split 'vaildation'"):
        train_validation(str(tmp_path), train_split="train_sft", validation_split="vaildation")


def test_rows_without_a_number_are_counted_where_some_are_held_out(tmp_path: Path) -> None:
    rows = [
        {"problem": f"p {n}?", "solution": "So it is $1+1=2$.", "answer": str(n) if n % 3 == 0 else "\\text{east}", "subject": "a"}
        for n in range(90)
    ]
    train, _ = train_validation(str(write_lines(tmp_path / "math.jsonl", rows)), cot_type="natural_language")
    assert train.note == "the last 3 rows are held out for validation, 60 rows left out that are answered by no number"


def test_main_is_meant_where_a_directory_holds_several_configurations(tmp_path: Path) -> None:
    """A clone of openai/gsm8k, with the README of the hub and without, beside a file of another set."""
    for configuration in ("main", "socratic"):
        for split, count in (("train", 20), ("test", 3)):
            write_lines(tmp_path / configuration / f"{split}-00000-of-00001.jsonl", gsm8k_rows(f"{configuration} {split}", count))
    hard = write_lines(tmp_path / "gsm8k_hard.jsonl", [{"input": "hard?", "code": "", "target": 1.5}])
    listed = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n  - split: test\n    path: {name}/test-*\n"
        for name in ("main", "socratic")
    )
    assert load_benchmark("gsm8k-hard", str(tmp_path)).source == str(hard)
    for readme in ("# no header", f"---\nconfigs:\n{listed}---\n", "---\nconfigs: [\n---\n"):
        (tmp_path / "README.md").write_text(readme, encoding="utf-8")
        assert load_benchmark("gsm8k", str(tmp_path)).examples[0].question == "main test 0?"
        train, validation = train_validation(str(tmp_path), cot_type="equation")
        assert {example.question.split()[0] for example in (*train.examples, *validation.examples)} == {"main"}
    assert load_benchmark("gsm8k", str(tmp_path / "socratic")).examples[0].question == "socratic test 0?"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{listed}---\n", encoding="utf-8")
    (tmp_path / "main").rename(tmp_path / ".hidden")
    with pytest.raises(
        UserError, match=r"has no data of configuration 'main', but of socratic; name a folder of it, such as (\S+)/socratic"
    ):
        load_benchmark("gsm8k", str(tmp_path))
