"""Checks of the device and the attention backends."""

import os
import shutil

import torch

from kava.cache.attention import PREFIX
from kava.tools.bench.timing import alternate
from kava.tools.smoke.lab import Lab, close_to_zero, relative, terms_apart

_SIZE = 512


def device(_: Lab) -> str:
    """Check a float32 matrix multiplication against float64 on the GPU, or on the CPU if there is none, and measure its speed."""
    where = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = torch.randn(2, _SIZE, _SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mine, theirs = left.to(where, torch.float32), right.to(where, torch.float32)
    sentence = close_to_zero(relative((mine @ theirs).cpu().double(), left @ right), 1e-4, f"{_SIZE} x {_SIZE} product")
    seconds = min(alternate({"product": lambda: mine @ theirs}, 3, where)["product"])
    if where == "cuda":
        properties = torch.cuda.get_device_properties(0)
        bf16 = "with bf16" if torch.cuda.is_bf16_supported() else "without bf16: set system.mixed_precision to fp16"
        name = f"{torch.cuda.device_count()} x {properties.name} ({properties.total_memory / 2**30:.0f} GiB, {bf16})"
    else:
        hint = " (there is a GPU driver, but this torch does not see a GPU)" if shutil.which("nvidia-smi") else ""
        name = f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads{hint}"
    return f"{name}; {2 * _SIZE**3 / seconds / 1e9:.0f} GFLOP/s; {sentence}"


def attention_backends(lab: Lab) -> str:
    """Check that every attention backend gives the same losses on a padded batch."""
    model, batch = lab.trained.model, lab.batch
    causal_lm = model.backbone.causal_lm
    with torch.no_grad():
        expected = model.losses(batch)
        try:
            causal_lm.set_attn_implementation(f"{PREFIX}eager")
            difference = terms_apart(model.losses(batch), expected)
        finally:
            causal_lm.set_attn_implementation(f"{PREFIX}sdpa")
    return f"{close_to_zero(difference, 1e-4, 'losses under eager and sdpa')}; {_flash(lab)}"


def _flash(lab: Lab) -> str:
    from transformers.utils import is_flash_attn_2_available

    if not (is_flash_attn_2_available() and torch.cuda.is_available()):
        return "flash_attention_2 is not available here"
    from kava.tools.bench.workload import Workload, build_workload

    model = build_workload(Workload(shape="tiny", latents=4, lora_r=4, dtype="bfloat16", device="cuda")).model
    batch = lab.batch.to("cuda")
    with torch.no_grad():
        expected = model.losses(batch)
        model.backbone.causal_lm.set_attn_implementation(f"{PREFIX}flash_attention_2")
        return close_to_zero(terms_apart(model.losses(batch), expected), 5e-2, "flash_attention_2 in bf16")
