"""Where a run computes: a GPU that Slurm gave and torch does not see, precisions that a GPU lacks, GPUs that stay unused."""

import pytest
import torch

from kava.errors import UserError
from kava.runtime.device import check_precision, choose_device, describe_device


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_GPUS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(("name", "value"), [("SLURM_JOB_GPUS", "0"), ("SLURM_GPUS_ON_NODE", "1"), ("SLURM_GPUS", "a100:1")])
def test_a_gpu_that_slurm_gave_and_torch_does_not_see_stops_the_run(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    for asked in (None, "auto"):
        with pytest.raises(UserError, match=rf"Slurm gave this job a GPU \({name}={value}\), .* sees none: .* set system.device to cpu"):
            choose_device(asked, "system.device")
    assert choose_device("cpu") == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose_device() == "cpu"


@pytest.mark.parametrize("given", [{}, {"SLURM_GPUS_ON_NODE": "0"}, {"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": ""}])
def test_a_job_without_a_gpu_runs_on_the_cpu(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert choose_device() == "cpu"


def test_a_gpu_without_bfloat16_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100-SXM2-16GB")
    with pytest.raises(UserError, match="Tesla V100-SXM2-16GB has no bfloat16: set system.mixed_precision to fp16"):
        check_precision("cuda:0", "bf16")
    assert asked == [False]
    for device, precision in (("cpu", "bf16"), ("cuda:0", "fp16"), ("cuda:0", "no")):
        check_precision(device, precision)


def test_gpus_that_stay_unused_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    for count, words in ((1, "cuda:0 (A100)"), (4, "cuda:0 (A100), one of 4 GPUs (torchrun --nproc-per-node 4 train.py ... uses all)")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert describe_device("cuda:0") == words
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert describe_device("cuda:0") == "cuda:0 (A100) in each of 4 processes"
    assert describe_device("cpu") == f"the CPU, {torch.get_num_threads()} threads"
