"""Generation: a batch answers each question as alone, finished rows leave it, and passes are counted as method.md says.

Cached decoding equals recomputing everything at each token, and transformers' own greedy search.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.checks import M, T, check_cached_decoding
from helpers.tiny import BACKENDS, KINDS, LAYERS, mini_builder, mini_examples, mini_model, mini_tokenizer
from kava.generate import Generation, Reasoner
from kava.methods import METHODS

QUESTIONS = [example.question for example in mini_examples(6)]


def test_an_error_leaves_the_model_in_its_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner = Reasoner(mini_model(), mini_builder(), 4, 2)
    reasoner.model.train()

    def fail(*_: Any) -> Any:
        assert not reasoner.model.training
        raise RuntimeError("out of memory")

    monkeypatch.setattr(reasoner, "start", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        reasoner.generate(["How many ?"])
    assert all(module.training for module in reasoner.model.modules())


def make_reasoner(kind: str = "llama", method: str = "kava", attn: str = "sdpa", *, latents: int = 4, iterations: int = 3) -> Reasoner:
    """A random model that never ends by itself, so that lengths are known."""
    return Reasoner(mini_model(kind, method, attn=attn), mini_builder("<never>"), latents, iterations)


def ending_at(reasoner: Reasoner, token: int) -> Reasoner:
    """The same model, with another token for EOS."""
    return Reasoner(
        reasoner.model, mini_builder(mini_tokenizer().convert_ids_to_tokens(token)), reasoner.num_latents, reasoner.num_iterations
    )


def answers(reasoner: Reasoner, questions: list[str] = QUESTIONS, **options: Any) -> list[Generation]:
    return reasoner.generate(questions, **{"max_new_tokens": 12, **options})


@pytest.mark.parametrize("attn", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["latent", "written", "direct", "sequential"])
def test_a_batch_answers_each_question_as_alone(kind: str, attn: str, mode: str) -> None:
    method = {"latent": "kava", "written": "full_cot", "direct": "no_cot", "sequential": "codi"}[mode]
    reasoner = make_reasoner(kind, method, attn)
    together = answers(reasoner)
    assert together == [answers(reasoner, [question])[0] for question in QUESTIONS]
    assert len({tuple(answer.token_ids) for answer in together}) > 1


def test_every_method_and_both_voices() -> None:
    for method in METHODS:
        reasoner = make_reasoner(method=method)
        for use_latent in (True, False):
            options = {"use_latent": use_latent, "max_new_tokens": 3}
            assert answers(reasoner, QUESTIONS[:3], **options) == [
                answers(reasoner, [question], **options)[0] for question in QUESTIONS[:3]
            ]


@pytest.mark.parametrize("method", ["kava", "full_cot", "codi"])
@pytest.mark.parametrize("kind", KINDS)
def test_finished_rows_leave_and_change_nothing(kind: str, method: str) -> None:
    reasoner = make_reasoner(kind, method)
    unending = answers(reasoner)
    first_seen = {
        token: [a.token_ids.index(token) if token in a.token_ids else None for a in unending] for a in unending for token in a.token_ids
    }
    token = max(first_seen, key=lambda token: len(set(first_seen[token])))
    assert len(set(first_seen[token])) > 2
    sizes: list[int] = []
    stopping = ending_at(reasoner, token)
    plain = stopping.model.backbone.logits

    def spy(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        return plain(hidden)

    stopping.model.backbone.logits = spy  # type: ignore[method-assign]
    stopped = answers(stopping)
    stopping.model.backbone.logits = plain  # type: ignore[method-assign]
    for before, after, end in zip(unending, stopped, first_seen[token], strict=True):
        assert after.complete is (end is not None)
        assert after.token_ids == before.token_ids[: 12 if end is None else end]
        assert after.generated_tokens == (12 if end is None else end + 1)
    steps = [12 if end is None else end + 1 for end in first_seen[token]]
    assert sizes == [sum(length > step for length in steps) for step in range(max(steps))]
    assert stopped == [answers(stopping, [question])[0] for question in QUESTIONS]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_results_come_in_the_order_asked(batch_size: int) -> None:
    reasoner = make_reasoner()
    expected = answers(reasoner)
    assert answers(reasoner, batch_size=batch_size) == expected
    assert answers(reasoner, QUESTIONS[::-1], batch_size=batch_size) == expected[::-1]


@pytest.mark.parametrize(
    ("method", "latents", "iterations", "before"),
    [
        ("kava", 24, 3, 1 + 3 + 1), ("kava", 24, 0, 1 + 0 + 1), ("kava", 2, 5, 1 + 2 + 1), ("pccot", 24, 3, 1 + 3 + 1),
        ("codi", 6, 3, 1 + 6 + 1), ("coconut", 4, 3, 1 + 4 + 1), ("no_cot", 24, 3, 1), ("icot", 24, 3, 1), ("full_cot", 24, 3, 1),
    ],
)  # fmt: skip
def test_forward_passes_and_tokens(method: str, latents: int, iterations: int, before: int) -> None:
    """Question, iterations, fixed text; then one pass per token that is fed back (the last one is not)."""
    reasoner = make_reasoner(method=method, latents=latents, iterations=iterations)
    for number in (1, 4):
        reasoner.model.backbone.forward_passes = 0
        (answer,) = answers(reasoner, QUESTIONS[:1], max_new_tokens=number)
        assert answer.generated_tokens == len(answer.token_ids) == number
        assert answer.forward_passes == before + number - 1 == reasoner.model.backbone.forward_passes
        assert not answer.complete


def test_an_answer_that_ends_counts_its_end() -> None:
    reasoner = make_reasoner()
    # A question without the letters of its answer's first token: as EOS that token would be cut out of the words.
    (unending,) = answers(reasoner, QUESTIONS[1:2])
    assert mini_tokenizer().convert_ids_to_tokens(unending.token_ids[0]) not in QUESTIONS[1]
    (ended,) = answers(ending_at(reasoner, unending.token_ids[0]), QUESTIONS[1:2])
    assert ended == replace(ended, text="", token_ids=[], forward_passes=5, generated_tokens=1, complete=True)


def test_a_batch_reports_what_each_question_alone_would_need() -> None:
    reasoner = make_reasoner()
    assert [answer.forward_passes for answer in answers(reasoner)] == [1 + 3 + 1 + 11] * len(QUESTIONS)


@pytest.mark.parametrize(("method", "extra"), [("kava", 1 + 4 + 1 + 4), ("no_cot", 4), ("full_cot", 0)])
def test_cache_bytes_count_real_entries_only(method: str, extra: int) -> None:
    """Question, <bot>, M = 4 latents, <eot>, 4 tokens of prompt, 11 tokens fed; 2 heads x 8 numbers x 4 bytes, keys and values."""
    reasoner = make_reasoner(method=method)
    assert len(reasoner.builder.prompt_ids) == 4
    for question, answer in zip(QUESTIONS, answers(reasoner), strict=True):
        entries = len(reasoner.builder.question_ids(question)) + extra + 11
        assert answer.cache_bytes == entries * LAYERS * 2 * 2 * 8 * 4


def test_sampling_is_a_function_of_its_seed() -> None:
    reasoner = make_reasoner()
    first, again, other = (answers(reasoner, temperature=5.0, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    # Nearly no temperature is no temperature.
    assert [a.token_ids for a in answers(reasoner, temperature=1e-4)] == [a.token_ids for a in answers(reasoner)]


def test_training_mode_is_put_back() -> None:
    reasoner = make_reasoner()
    for training in (True, False):
        reasoner.model.train(training)
        answers(reasoner, max_new_tokens=1)
        assert reasoner.model.training is training


def test_the_text_is_what_the_ids_say() -> None:
    reasoner = make_reasoner()
    for answer in answers(reasoner):
        assert answer.text == mini_tokenizer().decode(answer.token_ids, skip_special_tokens=True).strip()


@torch.inference_mode()
def test_confidence_is_the_probability_of_the_answer() -> None:
    """Behind the last prompt where the chain is written, all of it in latent mode."""
    reasoner = make_reasoner()
    answer = answers(reasoner, QUESTIONS[:1], max_new_tokens=3)[0]
    ids = [reasoner.builder.question_ids(QUESTIONS[0])]
    prefix, logits, _ = reasoner.start(ids)
    chance = 1.0
    for token in answer.token_ids:
        chance *= float(logits.softmax(-1)[0, token])
        run = reasoner.model.backbone.extend(prefix, reasoner.model.backbone.embed(torch.tensor([[token]])))
        prefix, logits = run.prefix, reasoner.model.backbone.logits(run.hidden[:, -1])
    assert answer.confidence == pytest.approx(chance, rel=1e-4)
    prompt = reasoner.builder.prompt_ids
    assert reasoner._answer_start([1, *prompt, 2, *prompt, 3]) == 2 + 2 * len(prompt)
    assert reasoner._answer_start([1, 2, 3]) == 0


MODES = {"latent": ("kava", True), "sequential": ("codi", True), "direct": ("no_cot", True), "written": ("full_cot", True),
         "teacher": ("kava", False)}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_decoding_equals_recomputing_everything(kind: str, mode: str) -> None:
    method, use_latent = MODES[mode]
    check_cached_decoding(kind, "sdpa", method, use_latent)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_written_answers_equal_transformers_greedy_search(kind: str) -> None:
    model, builder = mini_model(kind, "full_cot"), mini_builder()
    answers = Reasoner(model, builder, M, T).generate(QUESTIONS, max_new_tokens=20)
    end = builder.tokenizer.eos_token_id
    for question, answer in zip(QUESTIONS, answers, strict=True):
        ids = torch.tensor([builder.question_ids(question)])
        mask, pad = torch.ones_like(ids), builder.tokenizer.pad_token_id
        found = model.backbone.model.generate(
            ids, attention_mask=mask, max_new_tokens=20, do_sample=False, pad_token_id=pad, eos_token_id=end
        )
        assert answer.token_ids == [token for token in found[0, ids.shape[1] :].tolist() if token != end]
