"""A model split over two processes (FSDP2, gloo, CPU) trains as one process does, saves the normal layout, and goes on from it."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.forked_python import python
from kava.config import build_config, load_config
from kava.errors import UserError
from kava.evaluate.evaluate import Request, evaluate
from kava.runtime.processes import launched_to_split
from kava.train.train import train
from system.test_processes import ROOT, TINY, TORCHRUN, history, launch

pytestmark = pytest.mark.slow

SPLIT: dict[str, Any] = TINY | {"training.save_steps": 3}
WAYS: dict[str, dict[str, Any]] = {
    # As the 3B model trains: adapters on a frozen base, activations computed again.
    "adapter": {"lora.enabled": True, "lora.r": 4, "lora.dropout": 0.0, "training.gradient_checkpointing": True},
    "full": {},
}
# The launcher's own file, for two processes here.
CONFIGURED = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/fsdp.yaml", "--num_processes", "2"]


def command(way: str, output_dir: Path) -> list[str]:
    options = [word for key, value in (SPLIT | WAYS[way]).items() for word in (f"--{key}", str(value))]
    return ["train.py", "--config", "configs/mini.yaml", "--training.batch_size", "8", *options, "--output_dir", str(output_dir)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first run puts the pretrained base of all."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=list(WAYS))
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[str, Path, Path, Path]:
    """The same run in one process and split over two."""
    place = tmp_path_factory.mktemp(f"split-{request.param}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAVA_CACHE", str(cache))
        train(load_config(ROOT / "configs/mini.yaml", SPLIT | WAYS[request.param] | {"training.batch_size": 16}), place / "one", quiet=True)
    launch(TORCHRUN, *command(request.param, place / "two"), "--system.fsdp", "true", cache=cache)
    return request.param, place / "one", place / "two", cache


def check_losses(one: Path, two: Path) -> None:
    compared = 0
    for alone, together in zip(history(one), history(two), strict=True):
        for name in alone.keys() - {"eval_seconds_per_question", "examples_per_second"}:
            assert together[name] == pytest.approx(alone[name], rel=1e-5, abs=1e-12), (alone["step"], name)
            compared += 1
    assert compared >= 6 * 7 + 2


def check_weights(one: Path, two: Path) -> None:
    """The same files, tensors and shapes; values up to the order of additions."""
    names = {path.name for path in one.iterdir()} - {"rng_state.pth"}
    assert {path.name for path in two.iterdir()} == names | {"rng_state_0.pth", "rng_state_1.pth"}
    for name in sorted(name for name in names if name.endswith(".safetensors")):
        alone, together = load_file(one / name), load_file(two / name)
        assert {key: tensor.shape for key, tensor in alone.items()} == {key: tensor.shape for key, tensor in together.items()}
        for key, tensor in alone.items():
            torch.testing.assert_close(together[key], tensor, rtol=1e-4, atol=1e-6, msg=f"{name} {key}")


def test_losses_weights_and_files_are_those_of_one_process(runs: tuple[str, Path, Path, Path]) -> None:
    _, one, two, _ = runs
    check_losses(one, two)
    check_weights(one / "checkpoint-6", two / "checkpoint-6")
    states = [torch.load(run / "checkpoint-6" / "optimizer.pt", weights_only=True)["state"] for run in (one, two)]
    assert states[0].keys() == states[1].keys()
    for key, held in states[0].items():
        for name, value in held.items():
            torch.testing.assert_close(states[1][key][name], value, rtol=1e-3, atol=1e-6)
    question = Request(str(two / "best_checkpoint"), "test", max_samples=3)
    assert evaluate(question).metrics.total == 3


def test_a_split_run_goes_on_where_it_stopped(runs: tuple[str, Path, Path, Path]) -> None:
    """From its third step on, launched by accelerate with its file this time."""
    way, one, two, cache = runs
    if way != "adapter":
        pytest.skip("one way is enough")
    for path in (two / "checkpoint-6", two / "best_checkpoint"):
        shutil.rmtree(path)
    (two / "training_done.json").unlink()
    said = launch(CONFIGURED, *command(way, two), "--resume", cache=cache)
    assert "trained 6 steps" in said
    assert json.loads((two / "checkpoint-6" / "kava_config.json").read_text())["config"]["system"]["fsdp"] is True
    check_losses(one, two)
    check_weights(one / "checkpoint-6", two / "checkpoint-6")


# Of two processes each: answers of the split model before its first step, the losses and gradients of a step, answers again, and the
# optimizer's state.
WORKER = """
import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from helpers.checks import QUESTIONS
from kava.generate import Reasoner
from kava.train.sharding import gather_full_tensor, make_portable, run_on_all_ranks, shard
from helpers.tiny import assert_close, gradients, make_batch, make_examples, mini_builder, mini_model

distributed.init_process_group("gloo")
plain, split = mini_model(lora=True), mini_model(lora=True)
batch = make_batch(plain, make_examples())
answers = Reasoner(plain, mini_builder(), 4, 2).generate(QUESTIONS, max_new_tokens=4)
loss = plain(batch)["loss"].mean()
expected = gradients(plain, loss)
shard(split, torch.device("cpu"))
reasoner = Reasoner(split, mini_builder(), 4, 2)
assert run_on_all_ranks(split, lambda: reasoner.generate(QUESTIONS, max_new_tokens=4)) == answers
again = split(batch)["loss"].mean()
assert_close(again, loss, 1e-6)
again.backward()
for name, parameter in split.named_parameters():
    if parameter.requires_grad and parameter.grad is not None:
        assert_close(gather_full_tensor(parameter.grad), expected.pop(name), 1e-5, name)
assert not any(gradient.any() for gradient in expected.values()), list(expected)
assert run_on_all_ranks(split, lambda: reasoner.generate(QUESTIONS, max_new_tokens=4)) == answers

# The optimizer's state: saved in full, and loaded as shards, so that no device holds it in full.
trained = [parameter for parameter in split.parameters() if parameter.requires_grad]
first, second = torch.optim.AdamW(trained), torch.optim.AdamW(trained)
make_portable(first)
make_portable(second)
first.step()
saved, moved, move = first.state_dict(), [], Optimizer._process_value_according_to_param_policy
assert not any(isinstance(value, DTensor) for held in saved["state"].values() for value in held.values())
Optimizer._process_value_according_to_param_policy = staticmethod(lambda to, value, *rest: moved.append(value) or move(to, value, *rest))
second.load_state_dict(saved)
sharded = [value for value in moved if value.dim()]
assert len(sharded) == 2 * len(saved["state"]) and all(isinstance(value, DTensor) for value in sharded)
loaded = second.state_dict()["state"]
assert all(torch.equal(value, loaded[key][name]) for key, held in saved["state"].items() for name, value in held.items())
distributed.destroy_process_group()
"""


def test_a_split_model_answers_before_and_after_a_step(tmp_path: Path) -> None:
    """As a resumed run does whose validation was due when it stopped."""
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([python(), *TORCHRUN, str(worker)], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_one_process_has_nothing_to_split(tmp_path: Path) -> None:
    config = build_config({}, "a test", {"system.fsdp": True, "system.device": "cpu", "model.mini.pretrain_steps": 1})
    with pytest.raises(UserError, match="system.fsdp splits a model over several processes: start them with torchrun or accelerate"):
        train(config, tmp_path / "run", quiet=True)
    # Said before anything is loaded or written.
    assert not (tmp_path / "run").exists()


def test_what_accelerate_may_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched_to_split() is False
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert launched_to_split() is True
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(UserError, match="set fsdp_offload_params to false"):
        launched_to_split()
