"""A batch whose numbers make no sense stops the run, is named, saved and replayed; or is left out and counted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from helpers.tiny import MINI, PROMPT, PROMPT_IDS, lora_config, make_batch, make_examples, mini_builder, mini_examples, tiny_lm, tiny_model
from kava import cli
from kava.config import Config
from kava.data.batch_file import read_batch, write_batch
from kava.data.collate import Collator, build_collator
from kava.data.mini.tokenizer import build_mini_tokenizer
from kava.errors import UserError
from kava.train.guard import RecordedBatch, all_finite, explain
from kava.train.replay import replay
from kava.train.train import train

pytestmark = pytest.mark.usefixtures("own_cache")
ROWS, BAD_ROW, STEPS = 40, 8, 9


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model in which one word is NaN, and a data file with that word in one question."""
    place = tmp_path_factory.mktemp("guard")
    tokenizer = build_mini_tokenizer(MINI, PROMPT)
    examples = mini_examples(ROWS)
    used = {word for example in examples for text in (example.question, *example.steps, example.answer) for word in text.split()}
    spare = next(word for word in sorted(tokenizer.get_vocab()) if word.isalpha() and word not in used)
    causal_lm: LlamaForCausalLM = tiny_lm(vocabulary=len(tokenizer))
    with torch.no_grad():
        causal_lm.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(spare)] = float("nan")
    causal_lm.save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    rows = [{"question": example.question, "steps": list(example.steps), "answer": example.answer} for example in examples]
    rows[BAD_ROW - 1]["question"] = f"{spare} {rows[BAD_ROW - 1]['question']}"
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def settings(place: Path, **overrides: Any) -> Config:
    # A method without latents: the new tokens' rows start around the mean of all, which is NaN here.
    return lora_config(
        **{
            "method": "full_cot", "model.name": str(place / "base"), "dataset.name": str(place / "rows.jsonl"), "lora.dropout": 0.1,
            "training.batch_size": 2, "training.gradient_accumulation_steps": 2, "training.max_steps": STEPS, "training.logging_steps": 1,
            "training.eval_steps": STEPS, "training.save_steps": 2, "training.learning_rate": 1e-2, "evaluation.validation_samples": 2,
            "evaluation.max_new_tokens": 4, "system.device": "cpu", **overrides,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def stopped(place: Path) -> tuple[Path, str]:
    """A run that met the bad row, and what it said."""
    with pytest.raises(UserError) as caught:
        train(settings(place), place / "stopped", quiet=True)
    return place / "stopped", str(caught.value)


def test_it_names_term_step_and_example_and_how_to_go_on(stopped: tuple[Path, str]) -> None:
    run, message = stopped
    directory = next(run.glob("bad_batch-*"))
    step = directory.name.partition("-")[2]
    assert message.startswith(f"step {step}: student_ce is NaN in 1 of 4 examples (rows/train/{BAD_ROW}); kava replay {directory} ")
    assert message.endswith("or continue without such batches: --resume --training.max_bad_batches 1")
    assert "\n" not in message
    assert not (run / "training_done.json").exists()


def test_replay_takes_the_same_step(stopped: tuple[Path, str]) -> None:
    """Bit for bit, dropout included: the healthy examples have the losses that the training recorded."""
    run, _ = stopped
    torch.manual_seed(99)
    replayed = replay(next(run.glob("bad_batch-*")))
    assert [example.id for example in replayed.examples if not example.sound] == [f"rows/train/{BAD_ROW}"]
    assert len(replayed.examples) == 4
    assert not replayed.sound
    assert replayed.bad_parameters
    assert replayed.gradient_norm != replayed.gradient_norm
    healthy = [example for example in replayed.examples if example.sound]
    assert [example.losses for example in healthy] == [example.recorded for example in healthy]
    assert all(example.losses["student_ce"] > 0.1 for example in healthy)
    # The bad one's neighbour has no gradient of its own to show.
    assert [example.gradient_norm is None for example in replayed.examples].count(True) == 2


def test_replay_computes_the_loss_as_the_training_did(stopped: tuple[Path, str]) -> None:
    """With the fused kernels where the training had them: here they cannot run, and that is said."""
    with pytest.raises(UserError, match="system.fused_cross_entropy needs .* set it to false"):
        replay(next(stopped[0].glob("bad_batch-*")), {"system.fused_cross_entropy": True})


def test_the_command_shows_it_and_its_exit_code_says_so(stopped: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    directory = next(stopped[0].glob("bad_batch-*"))
    with pytest.raises(SystemExit) as end:
        cli.main("replay", [str(directory)])
    shown = capsys.readouterr().out
    assert end.value.code == 1
    assert "student_ce is NaN in 1 of 4 examples" in shown
    assert f"rows/train/{BAD_ROW}" in shown
    assert "3 of 4 examples are finite" in shown


def test_a_bad_batch_can_be_left_out_and_is_counted(stopped: tuple[Path, str], place: Path) -> None:
    """Resumed as the message says; the optimizer's next steps are finite, and the result says what was left out."""
    run, _ = stopped
    outcome = train(settings(place, **{"training.max_bad_batches": 3}), run, resume=True, quiet=True)
    assert (outcome.exit_code, outcome.steps) == (0, STEPS)
    assert json.loads((run / "training_done.json").read_text())["skipped_batches"] == 1
    assert json.loads((run / "best_checkpoint" / "kava_config.json").read_text())["skipped_batches"] == 1
    weights = load_file(run / "best_checkpoint" / "adapter_model.safetensors")
    assert all(value.isfinite().all() for name, value in weights.items() if "lora" in name)
    state = json.loads((run / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    bad = int(next(run.glob("bad_batch-*")).name.partition("-")[2])
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [step for step in range(1, STEPS + 1) if step != bad]
    assert all(entry["loss"] == entry["loss"] for entry in state["log_history"] if "loss" in entry)


def test_leaving_a_batch_out_moves_nothing(place: Path) -> None:
    """Weights and optimizer after the bad step are those before it."""
    config = settings(place, **{"training.max_bad_batches": 1, "training.save_steps": 1})
    run = place / "moves_nothing"
    train(config, run, quiet=True)
    bad = int(next(run.glob("bad_batch-*")).name.partition("-")[2])
    before, after = (run / f"checkpoint-{step}" for step in (bad - 1, bad))
    for name, value in load_file(before / "adapter_model.safetensors").items():
        assert torch.equal(value.nan_to_num(), load_file(after / "adapter_model.safetensors")[name].nan_to_num()), name
    first, second = (torch.load(place / "optimizer.pt", weights_only=True)["state"] for place in (before, after))
    assert all(torch.equal(first[key]["exp_avg"], second[key]["exp_avg"]) and first[key]["step"] == second[key]["step"] for key in first)


def test_a_damaged_replay_is_one_line(stopped: tuple[Path, str]) -> None:
    directory = next(stopped[0].glob("bad_batch-*"))
    with pytest.raises(UserError, match="report .*nowhere.* does not exist; give a directory bad_batch-<step> of a run"):
        replay("nowhere")
    content = (directory / "batch_1.safetensors").read_bytes()
    (directory / "batch_1.safetensors").write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"is damaged: batch_1.safetensors has .* copy it again"):
        replay(directory)
    (directory / "batch_1.safetensors").write_bytes(content)


@pytest.mark.parametrize("method", ["kava", "simcot", "no_cot"])
def test_a_batch_survives_its_file(tmp_path: Path, method: str) -> None:
    model = tiny_model(method=method)
    batch = make_batch(model, make_examples())
    write_batch(tmp_path / "batch.safetensors", batch, {"cpu": torch.get_rng_state()})
    again, extra = read_batch(tmp_path / "batch.safetensors")
    assert torch.equal(extra["cpu"], torch.get_rng_state())
    assert (again.num_latents, again.ids, again.teacher is None) == (batch.num_latents, batch.ids, batch.teacher is None)
    assert torch.equal(model(again)["loss"], model(batch)["loss"])


def test_a_batch_of_different_stages_survives_its_file(tmp_path: Path) -> None:
    model = tiny_model(method="coconut")
    batch = Collator(model.method, 0, len(PROMPT_IDS), num_latents=4).collate(make_examples(4), (2, 0, 1, 2))
    write_batch(tmp_path / "batch.safetensors", batch, {})
    again, _ = read_batch(tmp_path / "batch.safetensors")
    assert again.latent_mask is not None
    assert torch.equal(model(again)["loss"], model(batch)["loss"])
    assert torch.equal(again.rows(1, 3).latent_mask, batch.latent_mask[1:3])  # type: ignore[arg-type, index]


def test_other_safetensors_are_no_batch(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="is no saved batch"):
        read_batch(tmp_path / "x.safetensors")


def seen(**values: list[float]) -> RecordedBatch:
    builder = mini_builder()
    batch = build_collator(lora_config(), builder).collate([builder.encode(example) for example in mini_examples(2)])
    return RecordedBatch(batch, {}, {name: torch.tensor(value) for name, value in values.items()})


@pytest.mark.parametrize(
    ("values", "norm", "problem", "count"),
    [
        ({"loss": [1.0, float("nan")], "kv": [1.0, float("nan")]}, 1.0, "kv is NaN in 1 of 2 examples", 1),
        ({"loss": [float("inf"), 1.0], "codi": [float("inf"), 1.0]}, 1.0, "codi is infinite in 1 of 2 examples", 1),
        ({"loss": [float("inf"), 1.0], "codi": [3e38, 1.0]}, 1.0, "loss is infinite in 1 of 2 examples", 1),
        (
            {"loss": [float("nan")] * 2, "student_ce": [float("nan"), 1.0], "codi": [1.0, 2.0], "kv": [1.0, float("inf")]},
            1.0, "student_ce and kv are NaN in 2 of 2 examples", 2,
        ),
        ({"loss": [1.0, 2.0], "kv": [1.0, 2.0]}, float("nan"), "the gradient is NaN though all losses are finite", 2),
        ({"loss": [1.0, 2.0]}, float("inf"), "the gradient is infinite though all losses are finite", 2),
    ],
)  # fmt: skip
def test_which_number_is_bad(values: dict[str, list[float]], norm: float, problem: str, count: int) -> None:
    one = seen(**values)
    assert not all_finite([one.values["loss"]], torch.tensor(norm))
    found, examples = explain([one], norm)
    assert found == problem
    assert len(examples) == count
    assert explain([one], norm, " of this process")[0] == problem.replace("all losses", "all losses of this process")


def test_a_loss_scaler_s_infinite_gradient_is_its_own_affair() -> None:
    one = seen(loss=[1.0, 2.0])
    assert all_finite([one.values["loss"]], None)
    assert all_finite([one.values["loss"]], torch.tensor(3.0))
