"""lm-evaluation-harness, offline: its accuracy on local files equals evaluate.py's on the same questions."""

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.checks import make_trained
from helpers.forked_python import python
from helpers.tiny import PROMPT, mini_examples
from kava.checkpoint import load_checkpoint, save_checkpoint
from kava.data.answers import extract_answer
from kava.errors import UserError
from kava.evaluate.evaluate import Request, evaluate
from kava.generate import Reasoner

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = 24
TASK = """
task: local_gsm8k
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["Question:"], do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: [",", "(?s).*#### "]}}
filter_list:
  - name: strict-match
    filter:
      - {{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}}
      - {{function: take_first}}
"""

HAS_LM_EVAL = importlib.util.find_spec("lm_eval") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_LM_EVAL, reason="lm-evaluation-harness is not installed: pip install lm-eval"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint, and questions in GSM8K's form of which it answers about half: their gold answers are partly its own."""
    place = tmp_path_factory.mktemp("harness")
    trained = make_trained(place, spread=0.5)
    save_checkpoint(place / "saved", trained)
    examples = mini_examples(QUESTIONS)
    answers = Reasoner(trained.model, trained.builder, 4, 3).generate([example.question for example in examples], max_new_tokens=8)
    rows = []
    for number, (example, answer) in enumerate(zip(examples, answers, strict=True)):
        said = extract_answer(answer.text, PROMPT, after_prompt=True)
        gold = said if number % 2 and said is not None else example.answer
        rows.append({"question": example.question, "answer": f"Think.\n#### {gold}"})
    (place / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "tasks").mkdir()
    (place / "tasks" / "local.yaml").write_text(TASK.format(file=place / "gsm8k_test.jsonl"))
    return place


@pytest.fixture(scope="module")
def ours(place: Path) -> float:
    result = evaluate(Request(str(place / "saved"), "gsm8k", data_dir=str(place), overrides={"evaluation.max_new_tokens": 8}))
    assert result.metrics.total == QUESTIONS
    assert 0.1 < result.metrics.accuracy < 0.9
    return result.metrics.accuracy


@pytest.fixture(scope="module")
def model(place: Path) -> Any:
    from kava.evaluate.lm_eval import KavaLM

    model = KavaLM(str(place / "saved"), batch_size=7)
    model.max_new_tokens = 8
    return model


def accuracy(model: Any, task: str, folder: Path, metric: str, num_fewshot: int = 0, **metadata: Any) -> float:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata)
    results = lm_eval.simple_evaluate(model, tasks=[task], task_manager=manager, num_fewshot=num_fewshot, bootstrap_iters=0)
    found: float = results["results"][task][metric]
    return found


def test_our_task_counts_as_evaluate_does(place: Path, ours: float, model: Any) -> None:
    from kava.evaluate.lm_eval import TASKS

    assert accuracy(model, "kava_gsm8k", TASKS, "accuracy,none", data_dir=str(place)) == pytest.approx(ours, abs=1e-12)


def test_a_local_task_in_the_harness_s_own_form(place: Path, ours: float, model: Any) -> None:
    """Question and Answer around the question, the number behind ####, the harness's own extraction and metric."""
    assert accuracy(model, "local_gsm8k", place / "tasks", "exact_match,strict-match") == pytest.approx(ours, abs=1e-12)


def test_each_request_has_its_own_limit(place: Path, model: Any) -> None:
    """The harness hands over the requests of all tasks together."""
    questions = [f"Question: {example.question}\nAnswer:" for example in mini_examples(2)]
    limits = (1, 3)
    alone = [model.generate_until([_request(question, max_gen_toks=limit)])[0] for question in questions for limit in limits]
    together = model.generate_until([_request(question, max_gen_toks=limit) for question in questions for limit in limits])
    assert together == alone
    assert len(set(together)) > 2


def _request(context: str, **options: Any) -> Any:
    return SimpleNamespace(args=(context, options), task_name="", doc={})


def test_the_command(place: Path) -> None:
    words = [
        "--model",
        "kava",
        "--model_args",
        f"pretrained={place / 'saved'}",
        "--tasks",
        "local_gsm8k,kava_gsm8k",
        "--metadata",
        json.dumps({"data_dir": str(place)}),
        "--include_path",
        str(place / "tasks"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [python(), "-m", "kava", "lm-eval", *words, "--limit", "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    table = done.stdout.replace(" ", "")
    # A user's folder of tasks does not hide ours.
    assert "|local_gsm8k|" in table
    assert "|kava_gsm8k" in table
    assert "batch_size: auto" in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tasks", "kava_gsm8k", "--apply_chat_template"], "kava: questions are asked as in training, in no chat template"),
        (["--tasks", "gsm8k"], "kava: the task's data cannot be loaded"),
    ],
)
def test_what_cannot_be_is_one_sentence(place: Path, words: list[str], sentence: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(place)}
    command = [python(), "-m", "kava", "lm-eval", "--model_args", f"pretrained={place / 'saved'}", *words]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(sentence)
    assert "Traceback" not in done.stderr


def test_auto_is_the_checkpoint_s_own_batch(place: Path) -> None:
    from kava.evaluate.lm_eval import KavaLM

    model = KavaLM(str(place / "saved"), batch_size="auto")
    assert model.batch == load_checkpoint(place / "saved").config.evaluation.batch_size > 1


def test_questions_are_taken_out_of_their_frame() -> None:
    from kava.evaluate.lm_eval import question_of

    assert question_of("Tom has 7 .") == "Tom has 7 ."
    assert question_of("Question: A ?\nAnswer: 5\n\nQuestion: Tom has 7 .\nAnswer:") == "Tom has 7 ."


def test_what_the_harness_may_not_ask(model: Any) -> None:
    with pytest.raises(UserError, match="compares likelihoods"):
        model.loglikelihood([])
    for options in ({"do_sample": True}, {"temperature": 0.7}):
        with pytest.raises(UserError, match="asks for sampling"):
            model.generate_until([_request("Tom has 7 .", **options)])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "the checkpoint is missing: give --model_args pretrained=RUN"),
        ({"pretrained": "x", "dtype": "bfloat16"}, "a kava model has no argument 'dtype'"),
        ({"batch_size": "many"}, "batch_size is 'many'; give a number of questions, or auto"),
        ({"batch_size": "0"}, "batch_size is 0; it must be at least 1"),
    ],
)
def test_wrong_arguments_of_the_model_are_one_sentence(place: Path, arguments: dict[str, Any], sentence: str) -> None:
    from kava.evaluate.lm_eval import KavaLM

    with pytest.raises(UserError, match=re.escape(sentence)):
        KavaLM(**({"pretrained": str(place / "saved")} if "batch_size" in arguments else {}) | arguments)


def test_the_options_of_a_request_are_read_as_the_harness_reads_them(model: Any) -> None:
    question = mini_examples(1)[0].question
    (short,), (whole,) = (model.generate_until([_request(question, max_gen_toks=limit)]) for limit in (2, 8))
    assert short != whole
    for name in ("max_new_tokens", "max_tokens", "max_completion_tokens"):
        assert model.generate_until([_request(question, **{name: 2, "temperature": None, "until": None})]) == [short]
    end = whole[3:5]
    for until in (end, [end]):
        cut = model._written("", whole, model._options({"until": until})["until"])
        assert cut.startswith(whole.partition(end)[0])
        assert end not in cut.partition("\n")[0]


def test_examples_in_another_template_are_refused(place: Path, model: Any) -> None:
    def ask(context: str) -> Any:
        return model.generate_until([SimpleNamespace(args=(context, {}), task_name="theirs", doc={})])

    with pytest.raises(UserError, match="task theirs puts examples before its questions, each behind 'Q:'.*give --num_fewshot 0"):
        ask("Q: Tom has 7 .\nA: 7\n\nQ: Tom has 8 .\nA:")
    for bare in ("Tom has 7 .\n\nHow many ?", "Say how many .\n\nQ: Tom has 8 .\nA:", "Problem:\nTom has 8 .\n\nSolution:"):
        assert ask(bare)


def test_our_tasks_take_no_examples(place: Path, ours: float, model: Any) -> None:
    """Whatever the option says: the examples would be test questions with their gold answers."""
    from kava.evaluate.lm_eval import TASKS

    assert accuracy(model, "kava_gsm8k", TASKS, "accuracy,none", 2, data_dir=str(place)) == pytest.approx(ours, abs=1e-12)


def test_an_answer_is_read_as_the_model_s_type(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.reasoner.builder, "answer_type", "choice")
    assert model._written("", "B) 5 apples", []) == "B) 5 apples"
    assert model._written("Question: ?\nAnswer:", "B) 5 apples", []) == "B) 5 apples\n#### B"
