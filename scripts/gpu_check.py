"""One part of the GPU check; `scripts/gpu_check.sh` runs them all.  python scripts/gpu_check.py PART [OUTPUT_DIR]

Every figure is a line of JSON as soon as it is known. Weights and text are random, in the shapes of real models.
"""

import gc
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor
from torch.amp import GradScaler

from kava.config import MiniDataConfig
from kava.data.collate import Batch
from kava.data.mini.problems import vocabulary
from kava.losses.total import LossTerms
from kava.model.adapters import Adapters
from kava.model.backbone import Backbone
from kava.model.fused_kernels import fuse_kernels
from kava.model.kava import KavaModel
from kava.tools.bench.flops import shape_of, step_flops
from kava.tools.bench.naive import naive_losses, pccot_losses
from kava.tools.bench.workload import SHAPES, Workload, build_workload, random_batch, random_questions
from kava.train.batch_step import BatchStep

GIB = 2**30
LLAMA = Workload("llama-1b", 128, 64, 32, 8, 24, 3, 128, dtype="bfloat16", device="cuda", dropout=0.1)
SMOLLM2 = replace(LLAMA, shape="smollm2-135m")


def say(part: str, **figures: Any) -> None:
    """One line of JSON."""
    rounded = {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({"part": part, "card": torch.cuda.get_device_name(), **rounded}), flush=True)


def product() -> None:
    """The card's own rate."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = timed(lambda: left @ right, 20)
    say("product", tflops=2 * 8192**3 / seconds / 1e12)


def timed(run: Callable[[], Any], repeats: int) -> float:
    """Median seconds on the device, after two rounds that are not counted."""
    for _ in range(2):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) / 1e3 for start, stop in pairwise(marks))


def step_of(model: KavaModel, captured: bool, losses: Callable[[KavaModel, Batch], LossTerms] = KavaModel.losses) -> tuple[BatchStep, Any]:
    """Forward and backward pass as in training, with these losses, and the optimizer."""
    model.losses = partial(losses, model)  # type: ignore[method-assign]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    step = BatchStep(model, "bf16", GradScaler("cuda", enabled=False), graphs=captured)
    return step, torch.optim.AdamW(trained, lr=1e-5, fused=True)


def plain_adapters(model: KavaModel) -> None:
    """peft's own forward again."""
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.__dict__.pop("forward", None)
    model.backbone.adapters.groups = ()


def plain_losses(backbone: Backbone) -> None:
    """All logits at once again."""
    from kava.losses.token import token_losses

    backbone.token_losses = lambda hidden, labels: token_losses(backbone.logits(hidden), labels)  # type: ignore[method-assign]


def whole_step(step: BatchStep, optimizer: Any, batch: Batch) -> None:
    """A training step with everything that belongs to it."""
    step(batch, len(batch))
    torch.nn.utils.clip_grad_norm_(step.model.parameters(), 2.0, foreach=True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def seconds_on_host(run: Callable[[], Any]) -> tuple[float, float]:
    """Until the last kernel has been asked for, and until it has ended."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    asked = time.perf_counter() - started
    torch.cuda.synchronize()
    return asked, time.perf_counter() - started


def steps(workload: Workload, names: Sequence[str], repeats: int = 8) -> None:
    """The training step of one batch, optimizer included, with more and more of what makes it fast."""
    failed = 0
    for name in names:
        try:
            one_variant(workload, name, repeats)
        except torch.OutOfMemoryError as error:
            say("step", shape=workload.shape, variant=name, batch=workload.batch, error=str(error)[:100])
            failed = 1
    sys.exit(failed)


def forget() -> None:
    """Free the model of the variant before, which is in reference cycles, and measure peak memory anew."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def one_variant(workload: Workload, name: str, repeats: int) -> None:
    """Build a model, leave out what comes after `name` in `VARIANTS`, and measure."""
    place = VARIANTS.index(name)
    forget()
    trained = build_workload(workload)
    model, batch = trained.model.train(), random_batch(workload, trained)
    if name == "before":
        plain_adapters(model)
        plain_losses(model.backbone)
    else:
        fuse_kernels(model.backbone)
    step, optimizer = step_of(model, captured=name == "graph")
    run = partial(whole_step, step, optimizer, batch)
    with ExitStack() as without:
        if name == "before":
            without.enter_context(patch("kava.cache.attention.is_grouped", lambda *_: False))
        if place < VARIANTS.index("passes"):
            without.enter_context(patch.object(Adapters, "sum_gradients", lambda _: nullcontext()))
            without.enter_context(patch.object(Backbone, "takes_any_mask", False))
        run()
        _, second = seconds_on_host(run)
        seconds = timed(run, repeats)
        host, _ = seconds_on_host(run)
    say(
        "step", shape=workload.shape, layers=workload.layers or SHAPES[workload.shape].layers, variant=name, batch=workload.batch,
        dropout=workload.dropout, ms=1e3 * seconds, host_ms=1e3 * host,
        second_call_ms=1e3 * second, examples_per_second=workload.batch / seconds,
        tflops=step_flops(workload, shape_of(workload)) / seconds / 1e12,
        peak_gib=torch.cuda.max_memory_allocated() / GIB, reserved_gib=torch.cuda.max_memory_reserved() / GIB,
    )  # fmt: skip


def against() -> None:
    """Our step, and the two plain ones of `kava bench` with peft's own adapters, at a batch that all of them can hold."""
    workload = replace(LLAMA, batch=32)
    for name, losses in (("ours", KavaModel.losses), ("pccot", pccot_losses), ("naive", naive_losses)):
        forget()
        trained = build_workload(workload)
        model, batch = trained.model.train(), random_batch(workload, trained)
        if name == "ours":
            fuse_kernels(model.backbone)
        else:
            plain_adapters(model)
        step, optimizer = step_of(model, captured=name == "ours", losses=losses)
        seconds = timed(partial(whole_step, step, optimizer, batch), 5)
        say("against", variant=name, batch=workload.batch, ms=1e3 * seconds, peak_gib=torch.cuda.max_memory_allocated() / GIB)
        del trained, model, step, optimizer


def exact() -> None:
    """A captured step against the same step run as it is: losses and gradients; and with dropout, the same random numbers."""
    failed = False
    for dropout in (0.0, 0.1):
        workload = replace(SMOLLM2, batch=16, dropout=dropout, layers=4)
        results: list[tuple[Tensor, Tensor]] = []
        for captured in (False, True):
            trained = build_workload(workload)
            model = trained.model.train()
            fuse_kernels(model.backbone)
            step, _ = step_of(model, captured)
            batches = [random_batch(replace(workload, question=question), trained) for question in (40, 64)]
            torch.cuda.manual_seed(0)
            seen = [step(batch, 16.0)["loss"].clone() for batch in (*batches, *batches, *batches)]
            gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
            results.append((torch.stack(seen), torch.cat(gradients)))
        (losses, plain), (captured_losses, captured_gradients) = results
        loss = float((losses - captured_losses).abs().max() / losses.abs().max())
        gradient, finite = float((plain - captured_gradients).norm() / plain.norm()), bool(plain.isfinite().all())
        say("exact", dropout=dropout, loss=loss, gradient=gradient, finite=finite)
        # Measured: 1.6e-7 and 0. Not true of what is not a number, either.
        failed |= not (loss < 1e-5 and gradient < 1e-3 and finite)
    sys.exit(failed)


def waits() -> None:
    """A step in which nothing may wait for the device."""
    workload = replace(SMOLLM2, batch=8, layers=3)
    trained = build_workload(workload)
    model, batch = trained.model.train(), random_batch(workload, trained)
    fuse_kernels(model.backbone)
    step, _ = step_of(model, captured=False)
    step(batch, 8.0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(batch, 8.0)
        say("waits", none=True)
    except RuntimeError as error:
        say("waits", none=False, error=str(error)[:200])
        sys.exit(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def profile(output: Path) -> None:
    """Where the device's time goes in a step of LLaMA-1B's shape."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    trained = build_workload(LLAMA)
    model, batch = trained.model.train(), random_batch(LLAMA, trained)
    fuse_kernels(model.backbone)
    step, _ = step_of(model, captured=False)
    for _ in range(2):
        step(batch, 128.0)
    with profiler(activities=[ProfilerActivity.CUDA]) as record:
        step(batch, 128.0)
        torch.cuda.synchronize()
    table = record.key_averages().table(sort_by="cuda_time_total", row_limit=45, max_name_column_width=110)
    (output / "profile.txt").write_text(table)
    rows = sorted(record.key_averages(), key=lambda row: -row.device_time_total)
    say("profile", total_ms=sum(row.device_time_total for row in rows) / 1e3, kernels=sum(row.count for row in rows))
    for row in rows[:14]:
        say("kernel", name=row.key[:90], ms=row.device_time_total / 1e3, calls=row.count)


def decoding() -> None:
    """A pass of decoding, and latents against 65 written tokens."""
    from kava.tools.bench.decoding import build_reasoner

    for graphs in (False, True):
        reasoner = build_reasoner(replace(LLAMA, dropout=0.0))
        fuse_kernels(reasoner.model.backbone)
        reasoner.model.backbone.use_graphs(graphs)
        for batch in (1, 32):
            questions = random_questions(reasoner.builder, batch, 64)
            thinking = asking(reasoner, questions, 3, True)
            writing, few = asking(reasoner, questions, 65 + 3, False), asking(reasoner, questions, 5, False)
            say(
                "decoding", graphs=graphs, batch=batch, latent_seconds=thinking, written_seconds=writing, ratio=writing / thinking,
                pass_ms=1e3 * (writing - few) / 63,
            )  # fmt: skip


def asking(reasoner: Any, questions: list[str], tokens: int, latent: bool) -> float:
    """Median seconds of one batch."""
    generate = partial(reasoner.generate, questions, batch_size=len(questions), max_new_tokens=tokens, use_latent=latent)
    return statistics.median([seconds_on_host(generate)[1] for _ in range(6)][2:])


def training(output: Path, shape: str, batch: int, steps: int, limit: float) -> None:
    """`kava train` on random weights in a model's shape, and rows as long and as different as GSM8k-AUG's; ended after `limit` seconds."""
    begun = time.perf_counter()
    place = Path(tempfile.mkdtemp(prefix="kava-gpu-check-"))
    model_directory, rows = place / shape, place / "train.jsonl"
    trained = build_workload(replace(LLAMA, shape=shape, lora_r=0))
    trained.model.backbone.causal_lm.save_pretrained(model_directory)
    trained.tokenizer.save_pretrained(model_directory)
    del trained
    torch.cuda.empty_cache()
    # So few that shapes come back within the minute that this may take: a real epoch has 3,000 steps of 199 shapes.
    write_rows(rows, 32 * batch)
    settings = {
        "model.name": model_directory,
        "model.dtype": "bfloat16",
        "dataset.name": rows,
        "dataset.cot_type": "natural_language",
        "dataset.answer_prompt": "The answer to this is :",
        "training.batch_size": batch,
        "training.gradient_accumulation_steps": 1,
        "training.max_steps": steps,
        "training.logging_steps": 10,
        "training.eval_steps": 10 * steps,
        "training.save_steps": 10 * steps,
        "training.num_workers": 8,
        "evaluation.validation_samples": 8,
        "evaluation.max_new_tokens": 16,
    }
    run = place / "run"
    command = [sys.executable, "-m", "kava", "train", "--config", "configs/llama1b_aug.yaml", "--output_dir", str(run), "--seed", "42"]
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    made = time.perf_counter() - begun
    printed = output / f"train-{shape}.txt"
    with printed.open("w") as file, suppress(subprocess.TimeoutExpired):
        subprocess.run([*command, *flags], stdout=file, stderr=subprocess.STDOUT, timeout=limit - made, check=False)
    log = run / "train.log"
    rates = [float(rate) for rate in re.findall(r"examples/s ([\d.]+)", log.read_text())] if log.exists() else []
    if rates:
        half = statistics.median(rates[len(rates) // 2 :])
        say("train", shape=shape, batch=batch, steps=10 * len(rates), model_made_s=made, examples_per_second=half, by_ten_steps=rates)
    else:
        say("train", shape=shape, batch=batch, model_made_s=made, error=printed.read_text()[-600:] or f"nothing within {limit:.0f} s")
    shutil.rmtree(place)
    sys.exit(not rates)


def write_rows(path: Path, count: int) -> None:
    """Problems of random words whose questions and traces have the lengths of GSM8k-AUG's, drawn with replacement."""
    rng, words = random.Random(0), vocabulary(MiniDataConfig())
    words = [word for word in words if word.isalpha()]
    lengths = json.loads(Path(__file__).with_name("gsm8k_aug_lengths.json").read_text())
    with path.open("w") as file:
        for _ in range(count):
            question, trace = rng.choice(lengths)
            steps = [" ".join(rng.choices(words, k=trace))] if trace else []
            row = {"question": " ".join(rng.choices(words, k=question)), "steps": [*steps, "2 + 2 = 4"], "answer": str(rng.randint(0, 9))}
            file.write(json.dumps(row) + "\n")


# As transformers and peft run it; layers, losses and attention fused; the fewest passes and gradients added in place; all in a graph.
VARIANTS = ("before", "layers", "passes", "graph")
PARTS: dict[str, Callable[[Path, float], None]] = {
    "product": lambda *_: product(),
    "waits": lambda *_: waits(),
    "exact": lambda *_: exact(),
    "llama": lambda *_: steps(LLAMA, VARIANTS),
    "smollm2": lambda *_: steps(SMOLLM2, VARIANTS),
    "against": lambda *_: against(),
    "graph128": lambda *_: steps(LLAMA, ["graph"]),
    "profile": lambda output, _: profile(output),
    "decoding": lambda *_: decoding(),
    "train-llama": lambda output, limit: training(output, "llama-1b", 128, 120, limit),
    "train-smollm2": lambda output, limit: training(output, "smollm2-135m", 128, 150, limit),
}


def main() -> None:
    """Run one part: gpu_check.py PART [OUTPUT_DIR [SECONDS]]. What a training logged is read 20 seconds before its time is over."""
    name, output = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else ".")
    PARTS[name](output, float(sys.argv[3] if len(sys.argv) > 3 else 180) - 20)


if __name__ == "__main__":
    main()
