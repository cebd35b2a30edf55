"""`import kava` as a researcher guesses it: README's lines, and the sentences where something is wrong."""

import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from inspect import unwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, TextStreamer

import kava
from helpers.checks import make_trained
from helpers.tiny import assert_close, mini_examples, tiny_lm
from kava.checkpoint import save_checkpoint
from kava.config import Config
from kava.config.schema import TrainingConfig
from kava.eviction import compress
from kava.explain.readout import read_latents
from kava.results import verified_result
from kava.train.train import Outcome

QUESTIONS = [example.question for example in mini_examples(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> kava.Model:
    place = tmp_path_factory.mktemp("api")
    save_checkpoint(place / "run" / "best_checkpoint", make_trained(place))
    return kava.load(place / "run", device="cpu", overrides={"evaluation.max_new_tokens": 6})


def test_importing_it_loads_nothing() -> None:
    code = "import sys, kava; print(kava.__version__, *(n for n in ('torch', 'transformers', 'pydantic') if n in sys.modules)); dir(kava)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [kava.__version__]


def test_every_name_is_there() -> None:
    for name in kava.__all__:
        assert getattr(kava, name) is not None
    assert "kava" in kava.METHODS
    assert "rkv" in kava.SCORERS
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        kava.lode  # type: ignore[attr-defined]  # noqa: B018


def test_one_question_has_one_answer_and_a_list_a_list(model: kava.Model) -> None:
    one, several = model.answer(QUESTIONS[0]), model.answer(QUESTIONS)
    assert isinstance(one, kava.Generation)
    assert several[0] == one
    assert len(several) == 3
    for wrong in ("", [QUESTIONS[0], " "]):
        with pytest.raises(kava.UserError, match="ask with a text that is not empty"):
            model.answer(wrong)


@pytest.mark.parametrize("use_latent", [True, False])
def test_the_pieces_of_a_stream_are_the_answer(model: kava.Model, use_latent: bool) -> None:
    for question in QUESTIONS:
        pieces = list(model.stream(question, use_latent=use_latent))
        assert "".join(pieces) == model.answer(question, use_latent=use_latent).text
        assert all(pieces)


def test_thoughts_are_those_of_the_readout_and_of_each_question_alone(model: kava.Model) -> None:
    thoughts = model.think(QUESTIONS, top_k=2)
    latent = model.config.latent
    assert thoughts.hidden.shape[:3] == (latent.num_iterations + 1, 3, latent.num_tokens)
    assert thoughts.keys.shape == thoughts.values.shape
    assert (thoughts.keys.shape[0], thoughts.keys.shape[2], thoughts.keys.shape[4]) == (latent.num_iterations + 1, 3, latent.num_tokens)
    alone = model.think(QUESTIONS[1])
    assert_close(thoughts.hidden[:, 1:2], alone.hidden, 1e-4)
    assert_close(thoughts.keys[:, :, 1:2], alone.keys, 1e-4)
    for number, question in enumerate(QUESTIONS):
        assert thoughts.tokens[number] == read_latents(model.trained.reasoner(), question, 2).tokens


def test_generate_is_transformers_on_the_latent_cache(model: kava.Model, capsys: pytest.CaptureFixture[str]) -> None:
    answers = model.answer(QUESTIONS)
    ids = model.generate(QUESTIONS)
    texts = model.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert [text.strip() for text in texts] == [answer.text for answer in answers]
    builder = model.trained.builder
    padded, mask = model.trained.reasoner().pad([builder.question_ids(question) for question in QUESTIONS])
    assert torch.equal(model.generate(padded, attention_mask=mask), ids)
    assert torch.equal(model.generate(QUESTIONS, GenerationConfig(max_new_tokens=2)), ids[:, :2])
    model.generate(QUESTIONS[0], streamer=TextStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True))
    assert capsys.readouterr().out.strip() == answers[0].text


def test_generate_samples_as_transformers_does(model: kava.Model) -> None:
    torch.manual_seed(0)
    drawn = [model.generate(QUESTIONS[0], do_sample=True, temperature=2.0, max_new_tokens=4).tolist() for _ in range(4)]
    assert len({str(ids) for ids in drawn}) > 1
    greedy = model.generate(QUESTIONS[0], max_new_tokens=4)
    assert torch.equal(model.generate(QUESTIONS[0], do_sample=True, top_k=1, max_new_tokens=4), greedy)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_beams": 4}, "generate: num_beams does not apply"),
        ({"do_sample": True, "top_p": 1.5}, "top_p"),
        ({"streamer": 1}, "one answer"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate does not apply"),
        ({"do_sample": True, "max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
    ],
)
def test_what_generate_does_not_have_is_one_sentence(model: kava.Model, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(kava.UserError, match=sentence):
        model.generate(QUESTIONS, **settings)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (lambda model: model.answer(QUESTIONS, batch_size=-3), "batch_size is -3; it must be at least 1"),
        (lambda model: model.answer(QUESTIONS, max_new_tokens=0), "max_new_tokens is 0; it must be at least 1"),
        (lambda model: model.answer(QUESTIONS, temperature=float("nan")), "temperature is nan; it must be at least 0"),
        (lambda model: model.generate(QUESTIONS, max_new_tokens=0), "max_new_tokens is 0; it must be at least 1"),
        (lambda model: model.stream(QUESTIONS[0], max_new_tokens=0), "max_new_tokens is 0; it must be at least 1"),
        (lambda model: model.think(QUESTIONS, top_k=-1), "top_k is -1; it must be at least 1"),
    ],
)
def test_options_out_of_range_are_named(model: kava.Model, asked: Callable[[kava.Model], Any], sentence: str) -> None:
    with pytest.raises(kava.UserError, match=sentence):
        asked(model)


@pytest.mark.parametrize(
    ("inputs", "settings", "sentence"),
    [
        ([], {}, "there is no question"),
        (torch.tensor([5, 6, 7]), {}, r"the shape of the token ids is \(3,\); give \[B, S\]"),
        (torch.tensor([[5, 6]]), {"attention_mask": torch.ones(1, 3)}, r"\(1, 2\) with attention_mask \(1, 3\)"),
        (torch.tensor([[5, 10**6]]), {}, "give ids from 0 to"),
    ],
)
def test_inputs_that_are_no_questions_are_one_sentence(model: kava.Model, inputs: Any, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(kava.UserError, match=sentence):
        model.generate(inputs, **settings)


def test_a_setting_of_none_is_its_default(model: kava.Model) -> None:
    assert torch.equal(model.generate(QUESTIONS[0], max_new_tokens=None, num_beams=None), model.generate(QUESTIONS[0]))


def test_a_cache_of_transformers_is_compressed() -> None:
    """The trace of a plain forward pass: importance by hand, kept entries as by the package's own selection."""
    language_model = tiny_lm()
    language_model.set_attn_implementation("eager")
    ids = torch.randint(10, 60, (2, 14), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = language_model(ids, use_cache=True, output_attentions=True)
    trace = kava.Trace.from_cache(output.past_key_values, output.attentions, start=3, stop=11)
    probability = output.attentions[1][0, 2:4, 11:, 5].mean(1).max()  # heads 2 and 3 share the second KV head
    assert_close(trace.importance[1, 0, 1, 2], probability)
    kept = kava.compress(trace, "rkv", slots=4)
    assert torch.equal(kept.indices, compress(trace, "rkv", 4, 0.1).indices)
    assert torch.equal(kept.keys[0, 0, 0, 0], output.past_key_values.layers[0].keys[0, 0, 3 + int(kept.indices[0, 0, 0, 0])])


def test_wrong_words_are_one_sentence(model: kava.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trace = kava.Trace(
        *(torch.zeros(1, 1, 1, 2, 4),) * 2, torch.ones(1, 1, 1, 2), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, dtype=torch.long)
    )
    with pytest.raises(kava.UserError, match="there is no scorer 'rvk'; did you mean 'rkv'"):
        kava.compress(trace, "rvk")
    for lam in (1.5, -0.1, float("nan")):
        with pytest.raises(kava.UserError, match=f"lam is {lam}; it must be 0 to 1"):
            kava.compress(trace, lam=lam)
    with pytest.raises(kava.UserError, match="train has no option 'resme'; did you mean 'resume'"):
        kava.train("mini", "outputs/nowhere", resme=True)
    with pytest.raises(kava.UserError, match="answer has no option 'max_new_token'; did you mean 'max_new_tokens'"):
        model.answer(QUESTIONS[0], max_new_token=3)
    for several in (QUESTIONS, []):
        with pytest.raises(kava.UserError, match=f"stream answers one question, and {len(several)} were given"):
            unwrap(kava.Model.stream)(model, several)  # without the tests' check of types
    with pytest.raises(kava.UserError, match="device is cuda, but torch sees no GPU here"):
        kava.load("anything", device="cuda")
    with pytest.raises(kava.UserError, match="evaluate has no option 'max_sample'; did you mean 'max_samples'"):
        kava.evaluate(model, "gsm8k", max_sample=3)
    with pytest.raises(kava.UserError, match="configuration 'llama1b_agu' is neither a file nor a name"):
        kava.train("llama1b_agu", "outputs/nowhere")
    with pytest.raises(kava.UserError, match="the trace cannot be entries 5 to 2"):
        kava.Trace.from_cache([(torch.zeros(1, 1, 4, 2),) * 2], [torch.zeros(1, 2, 4, 4)], start=5, stop=2)


def test_a_configuration_in_python_has_the_schedule_that_its_method_has_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Config] = []

    def train_run(config: Config, *_: Any, **__: Any) -> Outcome:
        built.append(config)
        return Outcome(Path("nowhere"), 0, 0.0, 0)

    monkeypatch.setattr("kava.api.functions.train_run", train_run)
    own = Config()
    own.training.epochs = 7
    kava.train(own, "nowhere", overrides={"method": "icot"})
    kava.train(Config(method="icot"), "nowhere", overrides={"method": "coconut", "latent.num_tokens": 6})
    kava.train(Config(method="icot", training=TrainingConfig(epochs=5)), "nowhere")
    kava.train({"method": "icot", "training": {"tokens_per_stage": 3}}, "nowhere")
    found = [
        (one.epochs, one.tokens_per_stage, one.epochs_per_stage, one.removal_smoothing) for one in (config.training for config in built)
    ]
    assert found == [(7, 1, 0.125, 4), (10, 8, 3, None), (5, 1, 0.125, 4), (10, 3, 0.125, 4)]


def test_an_open_model_is_evaluated(model: kava.Model, tmp_path: Path) -> None:
    rows = tmp_path / "questions.jsonl"
    rows.write_text("".join(f'{{"question": "{question}", "answer": "So.\\n#### 1"}}\n' for question in QUESTIONS))
    result = kava.evaluate(model, str(rows), max_samples=2, output=tmp_path / "out" / "results.yaml")
    assert result.metrics.total == 2
    assert (tmp_path / "out" / "results.jsonl").is_file()
    # The model's own configuration is untouched.
    assert model.config.evaluation.max_samples is None


def test_overrides_of_an_open_model_are_refused_and_a_section_may_be_a_mapping(model: kava.Model, tmp_path: Path) -> None:
    with pytest.raises(kava.UserError, match="overrides belong to a checkpoint that is loaded here"):
        kava.evaluate(model, "gsm8k", overrides={"latent.num_iterations": 1})
    save_checkpoint(tmp_path / "saved", make_trained(tmp_path))
    latent = kava.load(tmp_path / "saved", device="cpu", overrides={"latent": {"num_iterations": 1}}).config.latent
    assert (latent.num_tokens, latent.num_iterations) == (model.config.latent.num_tokens, 1)
    with pytest.raises(kava.UserError, match="was trained with lora.r"):
        kava.load(tmp_path / "saved", device="cpu", overrides={"lora": {"r": 999}})


def test_a_model_that_moves_leaves_recorded_passes_behind(model: kava.Model) -> None:
    model.trained.model.backbone.use_graphs()
    assert model.to(torch.device("cpu")).trained.model.backbone.graphs is None


def test_results_from_python_belong_to_their_checkpoint(tmp_path: Path) -> None:
    """Of a path the manifest is recorded; of an open model the training, by which earlier results are known too."""
    run = tmp_path / "run"
    save_checkpoint(run / "best_checkpoint", make_trained(tmp_path))
    rows = tmp_path / "questions.jsonl"
    rows.write_text('{"question": "2 + 3 ?", "answer": "So.\\n#### 5"}\n')
    for name, given in (("path", run), ("open", kava.load(run, device="cpu"))):
        output = run / f"results_{name}.yaml"
        result = kava.evaluate(given, str(rows), output=output, device="cpu", max_new_tokens=4)
        assert (result.checkpoint is not None) == (name == "path")
        assert verified_result(output).metrics == result.metrics


def test_the_old_name_says_what_it_is_now() -> None:
    with pytest.warns(FutureWarning, match=r"kava.load\(NAME\)"):
        from kava.checkpoint.pretrained import KavaForCausalLM
    assert KavaForCausalLM is kava.Model


def test_the_first_page_s_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    english, chinese = (
        (Path(__file__).resolve().parents[2] / page).read_text(encoding="utf-8") for page in ("README.md", "README.zh-CN.md")
    )
    blocks = [re.findall(r"```python\n(.*?)```", page, re.DOTALL) for page in (english, chinese)]
    (block,), (same,) = ([re.sub(r"  # .*", "", block) for block in of_page] for of_page in blocks)
    assert block == same
    exec(block, {})
    number, written, latents, accuracy = capsys.readouterr().out.splitlines()
    assert "(docs/pictures/latents.svg)" in english
    drawn = re.findall(r">([^<]*)</text>", (Path(__file__).resolve().parents[2] / "docs/pictures/latents.svg").read_text(encoding="utf-8"))
    drawn = [unescape(text) for text in drawn]
    last = drawn.index("pass 6") + 1
    assert (number, written.strip()) == ("2", "2")
    assert latents == str(drawn[last : last + 16])
    assert float(accuracy) >= 0.8


def test_the_page_s_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["2", "2", "2"]
    assert lines[-1] == "torch.Size([2, 1, 2, 8, 8])"
