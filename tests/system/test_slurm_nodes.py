"""One run over two nodes on a real Slurm: two slurmd on this machine, srun between them, gloo between the ranks."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from helpers.scripts import load_script
from helpers.slurm_site import Site, until
from system.test_slurm import TINY, weights

# Seven processes that import torch, two at a time: half a minute on two free cores, and a crowded machine may take its time.
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(2400)]

STEPS = 40
SHORT = TINY.replace("max_steps: 160", f"max_steps: {STEPS}")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Any]:
    with load_script("slurm_testbed").Testbed(nodes=2) as testbed:
        yield testbed


def test_two_nodes_train_one_model_stop_and_go_on(slurm: Any, tmp_path: Any) -> None:
    site = Site(tmp_path, {"tiny": SHORT}, slurm.environment)
    # The same two ranks on one node, beside it.
    reference = site.sbatch("sbatch --gres=gpu:2 --export=CONFIG=tiny,SEED=123,OUTPUT_DIR=outputs/reference submit_kava.sh")
    job = site.sbatch("sbatch --export=CONFIG=tiny,SEED=123 scripts/submit_two_nodes.slurm")
    run_dir = site.root / "outputs" / "tiny_multi_seed" / "seed_123"
    log = run_dir / "train.log"
    until(lambda: log.exists() and " step " in log.read_text(), "a step of both nodes", 900, site.logs)
    assert site.field(job, "NodeList") == "node[1-2]"
    site.run("scancel", "--signal=USR1", "--batch", job)
    site.wait(job, reference, seconds=900)
    assert (site.field(job, "JobState"), site.field(job, "Restarts")) == ("COMPLETED", "1"), site.logs()
    said = site.log(job)
    for node in (0, 1):
        assert f"node {node} (node{node + 1}): 1 of the ranks" in said
    stops = [int(step) for step in re.findall(r"stopped by a signal after step (\d+)", said)]
    assert len(stops) == 1
    assert 0 < stops[0] < STEPS
    assert {path.name for path in (run_dir / f"checkpoint-{STEPS}").glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert weights(run_dir) == weights(site.root / "outputs" / "reference")
    assert yaml.safe_load((run_dir / "results_mini.yaml").read_text())["metrics"]["total"] == 8


def test_a_rank_that_fails_ends_the_job_with_its_reason(slurm: Any, tmp_path: Any) -> None:
    site = Site(tmp_path, {"tiny": SHORT.replace("batch_size: 2,", "batch_size: 2, optimizer: no_such_optimizer,")}, slurm.environment)
    job = site.sbatch("sbatch --export=CONFIG=tiny scripts/submit_two_nodes.slurm")
    site.wait(job, seconds=900)
    assert (site.field(job, "JobState"), site.field(job, "ExitCode")) == ("FAILED", "2:0"), site.logs()
    again = "sbatch --nodes=2 --export=CONFIG=tiny,SEED=42 scripts/submit_two_nodes.slurm"
    failed = "seed 42 of tiny on 2 nodes (training) failed with status 2; the reason stands above and in the .err log"
    assert f"{failed}; then continue with: {again}" in site.log(job)
    assert "training.optimizer 'no_such_optimizer' is unknown" in site.log(job, "err")
