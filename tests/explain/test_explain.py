"""Explanations: each number against a naive computation, and what must hold of it by definition."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.tiny import LAYERS, lora_config, mini_builder, mini_examples, mini_model, tiny_model
from kava.cache.layers import slice_layers
from kava.cache.rope import rerotate, unrotate
from kava.config import Config
from kava.data.answers import extract_answer
from kava.data.collate import build_collator
from kava.errors import UserError
from kava.explain.answer_attention import answer_attention
from kava.explain.caches import compare_caches, cosines, mean_cosines
from kava.explain.convergence import convergence, fixed_point_distances
from kava.explain.explain import Options, explain
from kava.explain.figures import figures
from kava.explain.intermediate import intermediate_results
from kava.explain.intervene import interventions
from kava.explain.questions import checked_question, own_example, with_trace
from kava.explain.readout import read_latents
from kava.explain.record import Explanation, StepResults, read_explanation, write_explanation
from kava.generate import Reasoner
from kava.model.backbone import Prefix

LATENTS = 4
EXAMPLES = list(mini_examples(6))
QUESTIONS = [example.question for example in EXAMPLES]


def make(kind: str = "llama", method: str = "kava", *, attn: str = "sdpa", iterations: int = 2, latents: int = LATENTS) -> Reasoner:
    return Reasoner(mini_model(kind, method, attn=attn, num_iterations=iterations, spread=0.3), mini_builder(), latents, iterations)


def config(**overrides: Any) -> Config:
    return lora_config(**{"evaluation.batch_size": 4, "latent.num_tokens": LATENTS, **overrides})


def test_cosines_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 2, 4, 5, generator=generator) for _ in range(2))
    found = cosines(student, teacher)
    for layer, example, i, j in [(0, 0, 0, 0), (1, 2, 3, 1), (0, 1, 2, 3)]:
        heads = [
            torch.nn.functional.cosine_similarity(student[layer, example, h, i].double(), teacher[layer, example, h, j].double(), dim=0)
            for h in range(2)
        ]
        assert float(found[layer, example, i, j]) == pytest.approx(float(sum(heads) / 2), abs=1e-6)
    assert torch.allclose(cosines(student, student).diagonal(dim1=-2, dim2=-1), torch.ones(2, 3, 4))


def test_mean_cosines_count_filled_slots_only() -> None:
    reasoner = make(latents=12)
    # This random model multiplies rounding by a thousand: in double precision what is left is the means.
    reasoner.model.double()
    encoded = reasoner.builder.encode_all([example for example in EXAMPLES if len(example.steps) > 1])
    build = build_collator(config(), reasoner.builder, reasoner.num_latents)
    alone = [compare_caches(reasoner.model, build.collate([example])) for example in encoded]
    keys, values = mean_cosines(reasoner.model, [build.collate(encoded[:2]), build.collate(encoded[2:])])
    widest = max(min(len(example.cot(True)), 12) for example in encoded)
    assert keys.shape == values.shape == (LAYERS, 12, widest)
    for slot in range(widest):
        filled = [view.keys[:, 0, :, slot] for view in alone if view.slot_mask[0, slot]]
        assert torch.allclose(keys[..., slot], torch.stack(filled).mean(0), atol=1e-5)


@pytest.mark.parametrize("kv_rope", ["post", "pre"])
def test_caches_of_a_batch_are_those_of_each_example_alone(kv_rope: str) -> None:
    reasoner = make()
    reasoner.model.settings = replace(reasoner.model.settings, num_iterations=2, kv_rope=kv_rope)
    encoded = reasoner.builder.encode_all([example for example in EXAMPLES if len(example.steps) > 1])
    build = build_collator(config(), reasoner.builder, reasoner.num_latents)
    together = compare_caches(reasoner.model, build.collate(encoded))
    for index, example in enumerate(encoded):
        alone = compare_caches(reasoner.model, build.collate([example]))
        filled = min(len(example.cot(True)), LATENTS)
        assert torch.equal(together.indices[:, index, :, :filled], alone.indices[:, 0, :, :filled])
        assert torch.allclose(together.keys[:, index, :, :filled], alone.keys[:, 0, :, :filled], atol=5e-5)
        assert torch.allclose(together.values[:, index, :, :filled], alone.values[:, 0, :, :filled], atol=5e-5)


@pytest.mark.parametrize("kind", ["llama", "llama3_rope", "yarn", "gpt2"])
def test_moved_keys_are_those_of_the_other_position(kind: str) -> None:
    decoder = tiny_model(kind).backbone.decoder
    keys = torch.randn(2, 1, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    source, target = (torch.full((2, 1, 2, 3), position) for position in (7, 3))
    there = rerotate(decoder, keys, source, target)
    assert torch.allclose(unrotate(decoder, there, target), unrotate(decoder, keys, source), atol=1e-5)
    assert torch.allclose(rerotate(decoder, there, target, source), keys, atol=1e-5)
    assert torch.equal(there, keys) == (kind == "gpt2")


def test_attention_is_shared_out_completely_and_by_every_backend_alike() -> None:
    question, answer = mini_builder().question_ids(QUESTIONS[0]), mini_builder().encode(EXAMPLES[0]).answer[-2:]
    sdpa, eager = (answer_attention(make(attn=attn), question, answer) for attn in ("sdpa", "eager"))
    assert torch.allclose(sum(sdpa.parts.values(), torch.zeros(LAYERS)), torch.ones(LAYERS), atol=1e-5)
    assert torch.allclose(sdpa.latents.sum(-1).mean(-1), sdpa.parts["latents"], atol=1e-6)
    assert torch.allclose(sdpa.latents, eager.latents, atol=1e-5)
    assert sdpa.latents.shape == (LAYERS, 2, LATENTS)


def test_the_first_t_latents_are_settled_after_t_iterations() -> None:
    settled = fixed_point_distances(make(), QUESTIONS, batch_size=4)
    assert settled.distance.shape == (LATENTS + 1, LATENTS)
    for t in range(LATENTS + 1):
        assert float(settled.distance[t, :t].sum()) < 1e-5
        assert bool((settled.distance[t, t:] > 1e-3).all())
    assert float(settled.top_token_agreement[-1]) == 1.0
    alone = [fixed_point_distances(make(), [question]).distance for question in QUESTIONS]
    assert torch.allclose(settled.distance, torch.stack(alone).mean(0), atol=1e-5)


def test_convergence_counts_the_answers_of_each_t() -> None:
    reasoner = make()
    found = convergence(reasoner, EXAMPLES, batch_size=4, max_new_tokens=4)
    assert [item.iterations for item in found.answers] == [0, 1, 2, 4]

    def predictions(t: int) -> list[str | None]:
        own = Reasoner(reasoner.model, reasoner.builder, LATENTS, t)
        return [extract_answer(g.text, own.builder.answer_prompt, after_prompt=True) for g in own.generate(QUESTIONS, max_new_tokens=4)]

    exact = predictions(LATENTS)
    for item in found.answers:
        own = predictions(item.iterations)
        assert item.agreement == pytest.approx(sum(a == b for a, b in zip(own, exact, strict=True)) / len(own))
        assert item.accuracy == pytest.approx(sum(a == e.answer for a, e in zip(own, EXAMPLES, strict=True)) / len(own))
    assert found.answers[-1].difference_to_fixed_point == 0.0


def naive_zeroed(reasoner: Reasoner, question: str, latent: int) -> str | None:
    ids, mask = reasoner.pad([reasoner.builder.question_ids(question)])
    thought, passes = reasoner.think(ids, mask)
    prefix, column = thought.prefix, thought.prefix.length - LATENTS + latent

    def zeroed(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[:, :, column] = 0
        return tensor

    layers = tuple((zeroed(keys), zeroed(values)) for keys, values in slice_layers(prefix.layers, 0, prefix.length))
    opened, logits = reasoner.conclude(Prefix(layers, prefix.mask, prefix.next_position, prefix.last_hidden))
    text = reasoner.write(opened, logits, passes, 4)[0].text
    return extract_answer(text, reasoner.builder.answer_prompt, after_prompt=True)


@torch.inference_mode()
def test_zeroing_a_latent_is_what_a_loop_over_questions_gives() -> None:
    reasoner = make()
    found = interventions(reasoner, EXAMPLES, batch_size=4, max_new_tokens=4)
    plain = [extract_answer(g.text, "The answer is:", after_prompt=True) for g in reasoner.generate(QUESTIONS, max_new_tokens=4)]
    zero = [effect for effect in found.effects if effect.kind == "zero"]
    assert [effect.latent for effect in zero] == [*range(LATENTS), None]
    for effect in zero[:LATENTS]:
        expected = [naive_zeroed(reasoner, question, effect.latent or 0) for question in QUESTIONS]
        assert effect.changed == pytest.approx(sum(a != b for a, b in zip(plain, expected, strict=True)) / len(plain))
    assert any(effect.changed > 0 for effect in found.effects)
    alone = interventions(reasoner, EXAMPLES, batch_size=1, max_new_tokens=4)
    assert found.model_dump() == alone.model_dump()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_swap_and_mean_of_one_and_the_same_question_change_nothing(kind: str) -> None:
    found = interventions(make(kind), [EXAMPLES[0]] * 3, max_new_tokens=4)
    assert all(effect.changed == 0 and effect.difference == 0 for effect in found.effects if effect.kind != "zero")


def test_results_are_looked_for_in_every_latent() -> None:
    reasoner = make()
    found = intermediate_results(reasoner, EXAMPLES, batch_size=4)
    assert [item.steps for item in found] == sorted({len(example.steps) for example in EXAMPLES})
    for item in found:
        own = [example for example in EXAMPLES if len(example.steps) == item.steps]
        assert item.questions == len(own)
        decoded = [read_latents(reasoner, example.question, 1).final() for example in own]
        results = [[step.rpartition("=")[2].removesuffix(">>") for step in example.steps] for example in own]
        for s in range(item.steps):
            for latent in range(LATENTS):
                hits = [[decoded[a][latent] == results[b][s] for b in range(len(own))] for a in range(len(own))]
                own_hits = sum(hits[a][a] for a in range(len(own)))
                assert item.held[s][latent] == pytest.approx(own_hits / len(own))
                others = sum(map(sum, hits)) - own_hits
                assert item.by_chance[s][latent] == pytest.approx(others / (len(own) * (len(own) - 1)))
    untraced = [own_example(question, number) for number, question in enumerate(QUESTIONS)]
    assert intermediate_results(reasoner, untraced) == []


def test_the_latent_that_stands_out_is_named() -> None:
    found = StepResults(steps=2, questions=40, held=[[0.9, 1.0, 0.2], [0.3, 0.1, 0.25]], by_chance=[[0.2, 0.85, 0.2], [0.3, 0.1, 0.1]])
    assert found.in_words() == (
        "40 questions of 2 steps: result 1 stands in latent 0 for 90 % (20 % by chance),"
        " result 2 stands in latent 2 for 25 % (10 % by chance)"
    )


def test_explanation_round_trip_and_figures(tmp_path: Path) -> None:
    options = Options("somewhere", "built-in", details=2, top_k=3, max_new_tokens=4, say=lambda text: None)
    found = explain(make(), config(), EXAMPLES, options)
    write_explanation(tmp_path / "explanation.json", found)
    again = read_explanation(tmp_path / "explanation.json")
    assert again.model_dump(exclude={"questions", "intermediate", "convergence", "interventions", "mean_similarity"}) == found.model_dump(
        exclude={"questions", "intermediate", "convergence", "interventions", "mean_similarity"}
    )
    view = again.questions[0]
    assert (len(view.tokens), len(view.tokens[0]), len(view.tokens[0][0])) == (3, LATENTS, 3)
    assert all(sum(latent) <= 1 + 1e-5 for row in view.probabilities for latent in row)
    for kept in (item.kept for item in again.questions if item.kept):
        assert sum(kept.share) == pytest.approx(min(LATENTS, len(kept.tokens)), abs=1e-5)
        assert kept.written_by == "data set"
    drawn = dict(figures(again))
    assert {"question1_readout", "question1_attention", "mean_keys", "mean_values", "intermediate", "convergence", "interventions"} <= set(
        drawn
    )
    drawn["mean_keys"].savefig(tmp_path / "mean_keys.png")
    assert (tmp_path / "mean_keys.png").stat().st_size > 2000


def test_methods_without_iterations_or_teacher_say_so() -> None:
    options = Options("somewhere", details=1, max_new_tokens=4, say=lambda text: None)
    found: Explanation = explain(make(method="coconut"), config(method="coconut"), EXAMPLES[:2], options)
    assert found.convergence is None
    assert found.mean_similarity is None
    assert len(found.notes) == 2
    one = explain(make(), config(), EXAMPLES[:1], options)
    assert one.interventions is None
    assert "at least two" in one.notes[0]


def test_no_more_tokens_than_there_are_words() -> None:
    reasoner = make()
    words = len(reasoner.builder.tokenizer)
    readout = read_latents(reasoner, QUESTIONS[0], 10 * words)
    assert words <= len(readout.tokens[0][0]) < 10 * words


def test_keys_whose_positions_stay_in_them_are_not_moved() -> None:
    """Gemma-3 rotates each kind of layer in its own way, SmolLM3 leaves some layers out."""
    options = Options("somewhere", details=1, max_new_tokens=4, say=lambda text: None)
    for kind in ("gemma3_text", "smollm3"):
        found = explain(make(kind), config(), EXAMPLES[:2], options)
        assert found.interventions is None
        assert "no interventions: keys of this model" in found.notes[0]


def test_what_cannot_be_explained_is_said_in_a_sentence() -> None:
    with pytest.raises(UserError, match="full_cot has no latents"):
        explain(make(method="full_cot"), config(), EXAMPLES, Options("somewhere"))
    with pytest.raises(UserError, match="question is empty"):
        checked_question(make(), "  ", config())
    with pytest.raises(UserError, match=r"question has \d+ tokens, but .* at most 8"):
        checked_question(make(), QUESTIONS[0], config(**{"dataset.max_length": 8}))


def test_a_question_without_trace_gets_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner = make()
    written = reasoner.generate(QUESTIONS[:1], max_new_tokens=4)[0]
    text = "<<1+2=3>>\n<<3+1=4>>\nThe answer is: 4"
    monkeypatch.setattr(Reasoner, "generate", lambda *_, **__: [type(written)(text, [], 1, 1, 1, True, answer="4")])
    traced = with_trace(reasoner, own_example(QUESTIONS[0], 1), 8)
    assert traced is not None
    assert (traced.steps, traced.answer) == (("<<1+2=3>>", "<<3+1=4>>"), "4")
    monkeypatch.setattr(Reasoner, "generate", lambda *_, **__: [type(written)("nothing", [], 1, 1, 1, True)])
    assert with_trace(reasoner, own_example(QUESTIONS[0], 1), 8) is None
