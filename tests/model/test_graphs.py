"""Reading and writing through buffers of fixed size: the same answers as without; on a GPU the passes are CUDA graphs."""

from collections.abc import Iterator

import pytest
import torch

from helpers.tiny import KINDS, mini_builder, mini_examples, mini_model, tiny_model
from kava.errors import UserError
from kava.generate import PADDED_QUESTION, Reasoner
from kava.model.adapted_layer import fuse_adapted_layers
from kava.model.graphs import reads_values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [False, True])
def test_answers_are_the_same(kind: str, lora: bool) -> None:
    model = mini_model(kind, lora=lora)
    reasoner = Reasoner(model, mini_builder(), 4, 3)
    questions = [example.question for example in mini_examples(6)]
    expected = reasoner.generate(questions, max_new_tokens=9, batch_size=4)
    model.backbone.use_graphs()
    assert model.backbone.graphs is not None
    for fused in (False, True):
        if fused and lora and kind == "llama":
            assert fuse_adapted_layers(model.backbone)
        found = reasoner.generate(questions, max_new_tokens=9, batch_size=4)
        assert found == expected
        assert [one.confidence for one in found] == pytest.approx([one.confidence for one in expected], rel=1e-4)


def test_answers_in_and_out_of_inference_mode_and_two_at_once_are_the_same() -> None:
    """`answer` and `evaluate` run in inference mode, `stream` does not, and is read piece by piece."""
    model = mini_model("llama", spread=0.3)
    reasoner = Reasoner(model, mini_builder(), 4, 3)
    questions = [example.question for example in mini_examples(2)]

    def pieces(question: str) -> Iterator[int]:
        with torch.no_grad():
            prefix, logits, _ = reasoner.start([reasoner.builder.question_ids(question)])
        written = reasoner.tokens(prefix, logits, 9)
        while True:
            with torch.no_grad():
                try:
                    _, tokens, _ = next(written)
                except StopIteration:
                    return
            yield int(tokens)

    expected = [list(pieces(question)) for question in questions]
    assert expected[0] != expected[1]
    model.backbone.use_graphs()
    answered = reasoner.generate(questions[:1], max_new_tokens=9)
    assert list(zip(*(pieces(question) for question in questions), strict=False)) == list(zip(*expected, strict=False))
    assert [list(pieces(question)) for question in questions] == expected
    assert reasoner.generate(questions[:1], max_new_tokens=9) == answered


def test_a_question_that_just_fits_is_answered_with_padding_too() -> None:
    model = mini_model("gpt2")
    reasoner = Reasoner(model, mini_builder(), 4, 3)
    question = mini_examples(1)[0].question
    ids = reasoner.builder.question_ids(question)
    assert len(ids) % PADDED_QUESTION
    fits = 256 - len(ids) - 4 - 2 - len(reasoner.builder.prompt_ids)
    expected = reasoner.generate([question], max_new_tokens=fits)
    assert expected[0].generated_tokens > fits - PADDED_QUESTION, "an answer that needs the room"
    beyond = [*reasoner.stream(question, fits + 1)][-1]
    model.backbone.use_graphs()
    assert reasoner.generate([question], max_new_tokens=fits) == expected
    assert len([*reasoner.stream(question, fits)]) == expected[0].generated_tokens
    assert [*reasoner.stream(question, fits + 1)][-1] == beyond, "the last token is written, and not read"
    with pytest.raises(UserError, match="256"):
        reasoner.generate([question], max_new_tokens=fits + 1)


def test_what_asks_the_device_for_a_number_is_not_recorded() -> None:
    backbone = mini_model("llama").backbone
    assert not backbone.syncs_with_device
    backbone.fused = True
    assert backbone.syncs_with_device
    backbone.fused, backbone.causal_lm.config._attn_implementation = False, "kava_flash_attention_2"
    assert backbone.syncs_with_device


@pytest.mark.parametrize("kind", ["llama", "llama3_rope", "longrope", "dynamic", "mixtral", "gpt_oss"])
def test_a_model_that_reads_the_device_by_itself_is_not_recorded(kind: str) -> None:
    backbone = tiny_model(kind, "eager").backbone
    assert backbone.syncs_with_device == (not kind.startswith("llama"))
    backbone.causal_lm.config.moe_num_experts = 4
    assert reads_values(backbone.causal_lm)


def test_weights_that_change_are_seen() -> None:
    model = mini_model("llama", lora=True)
    reasoner = Reasoner(model, mini_builder(), 4, 3)
    questions = [example.question for example in mini_examples(3)]
    model.backbone.use_graphs()
    before = reasoner.generate(questions, max_new_tokens=6)
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    after = reasoner.generate(questions, max_new_tokens=6)
    model.backbone.use_graphs(False)
    assert reasoner.generate(questions, max_new_tokens=6) == after
    assert [one.confidence for one in before] != [one.confidence for one in after]


def test_training_mode_comes_back_after_an_error_too() -> None:
    model = mini_model("llama")
    model.train()
    reasoner = Reasoner(model, mini_builder(), 4, 3)
    model.backbone.graphs = "broken"  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        reasoner.generate([mini_examples(1)[0].question])
    assert model.training
