"""One run over two nodes on a real Slurm: two slurmd on this machine, srun between them, gloo between the ranks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml

from helpers.scripts import load_script
from helpers.slurm_site import Site, until
from system.test_slurm import TINY, weights

# Seven processes that import torch, two at a time: half a minute on two free cores, and a crowded machine may take its time.
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(2400)]

STEPS = 40
SHORT = TINY.replace("max_steps: 160", f"max_steps: {STEPS}")


@dataclass
class Jobs:
    """Of two checkouts: a run of two nodes with its reference, and one whose ranks fail."""

    site: Site
    reference: str
    two_nodes: str
    failing_site: Site
    failing: str


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    with load_script("slurm_testbed").Testbed(nodes=2) as testbed:
        site = Site(tmp_path_factory.mktemp("site"), {"tiny": SHORT}, testbed.environment)
        unknown = SHORT.replace("batch_size: 2,", "batch_size: 2, optimizer: no_such_optimizer,")
        # Its ranks are Python as every user starts it.
        failing_site = Site(tmp_path_factory.mktemp("failing"), {"tiny": unknown}, testbed.environment)
        site.fork_jobs()
        # The same two ranks on one node, beside it.
        reference = site.sbatch("sbatch --gres=gpu:2 --export=CONFIG=tiny,SEED=123,OUTPUT_DIR=outputs/reference submit_kava.sh")
        two_nodes = site.sbatch("sbatch --export=CONFIG=tiny,SEED=123 scripts/submit_two_nodes.slurm")
        failing = failing_site.sbatch("sbatch --export=CONFIG=tiny scripts/submit_two_nodes.slurm")
        log = site.root / "outputs" / "tiny_multi_seed" / "seed_123" / "train.log"
        until(lambda: log.exists() and " step " in log.read_text(), "a step of both nodes", 900, site.logs)
        assert site.run("scancel", "--signal=USR1", "--batch", two_nodes).returncode == 0
        yield Jobs(site, reference, two_nodes, failing_site, failing)


def test_a_rank_that_fails_ends_the_job_with_its_reason(jobs: Jobs) -> None:
    site, job = jobs.failing_site, jobs.failing
    site.wait(job, seconds=900)
    assert (site.field(job, "JobState"), site.field(job, "ExitCode")) == ("FAILED", "2:0"), site.logs()
    again = "sbatch --nodes=2 --export=CONFIG=tiny,SEED=42 scripts/submit_two_nodes.slurm"
    failed = "seed 42 of tiny on 2 nodes (training) failed with status 2; the reason stands above and in the .err log"
    assert f"{failed}; then continue with: {again}" in site.log(job)
    assert "training.optimizer 'no_such_optimizer' is unknown" in site.log(job, "err")


def test_two_nodes_train_one_model_stop_and_go_on(jobs: Jobs) -> None:
    site, job = jobs.site, jobs.two_nodes
    run_dir = site.root / "outputs" / "tiny_multi_seed" / "seed_123"
    site.wait(job, jobs.reference, seconds=900)
    assert site.field(job, "NodeList") == "node[1-2]"
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
