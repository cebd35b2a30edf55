"""The Slurm scripts on a real Slurm (scripts/slurm_testbed.py): three seeds, preemption, failure, cancellation.

One campaign is submitted once and looked at by several tests: `./hpc_run_all.sh tiny`, whose seed 123 gets its pre-timeout signal
while it trains, beside an undisturbed run of the same seed, one of two ranks, one that is cancelled and one that meets its time limit.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.scripts import load_script
from helpers.slurm_site import ACTIVATE, SITE_ENV, Site, until

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SEEDS = [42, 123, 456]
# Small in every dimension, with enough steps to be met by a signal while it trains; one epoch, as checkpoints go by epochs.
TINY = """
model:
  name: builtin:mini
  mini: {num_layers: 2, hidden_size: 32, num_heads: 2, num_kv_heads: 1, pretrain_steps: 5, pretrain_batch_size: 4}
lora: {r: 4, alpha: 4}
latent: {num_tokens: 2, num_iterations: 1}
dataset: {mini: {num_train: 320, num_eval: 8}}
training: {max_steps: 160, batch_size: 2, logging_steps: 2}
evaluation: {datasets: {mini: builtin:mini/test}, validation_samples: 4, max_samples: 8, max_new_tokens: 4}
system: {mixed_precision: "no", device: cpu}
"""
ENDLESS = TINY.replace("max_steps: 160", "max_steps: 1000000")


@dataclass
class Campaign:
    """One checkout, and the jobs that were submitted from it. Each test waits for its own: meanwhile the others go on."""

    site: Site
    timed: str
    refused: str
    array: str
    aggregation: str
    reference: str
    cancelled: str = ""
    ranks: str = ""
    # How the timed one was when the refused one had failed, and the limit in minutes that it got then.
    state: str = ""
    minutes: int = 0

    def seed_dir(self, seed: int) -> Path:
        return self.site.root / "outputs" / "tiny_multi_seed" / f"seed_{seed}"


@pytest.fixture(scope="module")
def slurm() -> Iterator[Any]:
    with load_script("slurm_testbed").Testbed() as testbed:
        yield testbed


def hpc_run_all(site: Site) -> tuple[str, str]:
    """Job ids of the array and of the aggregation."""
    done = site.run("./hpc_run_all.sh", "tiny")
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"tiny:\n  job (\d+): seeds 42 123 456\n  job (\d+): aggregation into (\S+)\nwatch: .*\n", done.stdout)
    assert found, done.stdout
    assert found[3] == "outputs/tiny_multi_seed/aggregated_results.yaml"
    return found[1], found[2]


def train_until_step(site: Site, run_dir: Path) -> None:
    """Until the trainer of a run has logged a step."""
    log = run_dir / "train.log"
    until(lambda: log.exists() and re.search(r"\bstep \d+", log.read_text()) is not None, f"a step in {log}", 300, site.logs)


def weights(run_dir: Path) -> dict[str, bytes]:
    """Every weight file of the best checkpoint, byte for byte."""
    found = {path.name: path.read_bytes() for path in (run_dir / "best_checkpoint").glob("*.safetensors")}
    assert found, f"no weights in {run_dir}"
    return found


def signal_batch(site: Site, job: str) -> None:
    """What --signal=B:USR1@120 does two minutes before the time limit: to the batch shell alone."""
    assert site.run("scancel", "--signal=USR1", "--batch", job).returncode == 0


def set_niceness(site: Site, job: str, niceness: int) -> None:
    """At 19 a job that only waits takes what the others leave."""
    shown = site.run("scontrol", "listpids", job).stdout.splitlines()[1:]
    for process in (line.split()[0] for line in shown):
        site.run("renice", "-n", str(niceness), "-p", process)
        # Linux shares cores among sessions first: `renice` alone counts within one.
        with suppress(OSError):  # a process that is through, or a system without such shares
            Path(f"/proc/{process}/autogroup").write_text(str(niceness))


@pytest.fixture(scope="module")
def campaign(slurm: Any, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    # Of these jobs the one that waits for its time limit, and the one that it keeps out, are Python as every user starts it.
    site_env = f"{SITE_ENV}[[ ${{CONFIG:-}} != endless ]] || {ACTIVATE}"
    site = Site(tmp_path_factory.mktemp("site"), {"tiny": TINY, "endless": ENDLESS}, slurm.environment, site_env)
    endless = "sbatch --export=CONFIG=endless,SEED=1,OUTPUT_DIR=outputs/timed submit_kava.sh"
    timed = site.sbatch(endless)
    site.fork_jobs()
    train_until_step(site, site.root / "outputs" / "timed")
    refused = site.sbatch(endless)
    set_niceness(site, timed, 19)
    array, aggregation = hpc_run_all(site)
    reference = site.sbatch("sbatch --export=CONFIG=tiny,SEED=123,OUTPUT_DIR=outputs/reference submit_kava.sh")
    campaign = Campaign(site, timed, refused, array, aggregation, reference)
    train_until_step(site, campaign.seed_dir(123))
    signal_batch(site, f"{array}_1")
    campaign.cancelled = site.sbatch("sbatch --export=CONFIG=tiny,SEED=123 submit_kava.sh")
    train_until_step(site, site.root / "outputs" / f"seed_{campaign.cancelled}")
    site.run("scancel", campaign.cancelled)
    campaign.ranks = site.sbatch("sbatch --gres=gpu:2 --export=CONFIG=tiny,SEED=123,OUTPUT_DIR=outputs/ranks submit_kava.sh")
    train_until_step(site, site.root / "outputs" / "ranks")
    signal_batch(site, campaign.ranks)
    until(lambda: site.field(refused, "JobState") == "FAILED", "the second job to refuse", explain=site.logs)
    campaign.state = site.field(timed, "JobState")
    # Of the limit less than three minutes are left.
    started = datetime.fromisoformat(site.field(timed, "StartTime"))
    campaign.minutes = int((datetime.now() - started).total_seconds()) // 60 + 3
    assert site.run("scontrol", "update", f"JobId={timed}", f"TimeLimit={campaign.minutes}").returncode == 0
    return campaign


def test_two_jobs_do_not_train_in_one_directory(campaign: Campaign) -> None:
    assert campaign.site.field(campaign.refused, "JobState") == "FAILED"
    assert campaign.state == "RUNNING"
    assert "outputs/timed" in campaign.site.log(campaign.refused, "err")


@pytest.mark.parametrize(
    ("export", "script", "sentence"),
    [
        ("CONFIG=tiny; touch owned", "submit_multi_seed.slurm", "CONFIG 'tiny; touch owned' is no configuration name"),
        ("CONFIG=$(touch owned)", "submit_aggregate.slurm", "CONFIG '$(touch owned)' is no configuration name"),
        ("CONFIG=tiny,SEED=1; touch owned", "submit_kava.sh", "SEED '1; touch owned' is no seed: a whole number such as 42"),
        ("CONFIG=tyni", "submit_multi_seed.slurm", "configuration 'tyni' is neither a file nor a name in configs/; did you mean 'tiny'?"),
        # As the guide's troubleshooting types it, without CONFIG: the first configuration, which this checkout does not have.
        ("SEED=42", "submit_multi_seed.slurm", "configuration 'llama1b_aug' is neither a file"),
        ("SEED=42", "submit_kava.sh", "configuration 'llama1b_aug' is neither a file"),
    ],
)
def test_wrong_input_ends_the_job_with_one_sentence(slurm: Any, tmp_path: Path, export: str, script: str, sentence: str) -> None:
    site = Site(tmp_path, {"tiny": TINY}, slurm.environment)
    array = ["--array=0"] if script == "submit_multi_seed.slurm" else []
    done = site.run("sbatch", "--parsable", *array, f"--export={export}", script)
    job = done.stdout.strip()
    site.wait(job)
    log = site.log(f"{job}_0" if array else job, "err")
    assert log.startswith(f"kava: {sentence}")
    assert log.count("\n") == 1
    assert site.field(job, "ExitCode") == "2:0"
    assert not (site.root / "owned").exists()


def test_an_environment_without_the_packages_is_named(slurm: Any, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    site_env = f"KAVA_ACTIVATE='source {bare}/bin/activate'\n"
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site", {"tiny": TINY}, slurm.environment, site_env)
    assert site.run("python3", "-m", "venv", "--without-pip", str(bare)).returncode == 0
    job = site.sbatch("sbatch --export=CONFIG=tiny,SEED=1 submit_kava.sh")
    site.wait(job)
    log = site.log(job, "err")
    assert log.startswith(f"kava: {bare}/bin/python3 on ")
    assert "cannot run kava (no torch, transformers, peft, pydantic, yaml, tyro): set KAVA_ACTIVATE in configs/site.env" in log


def test_hpc_run_all_refuses_a_configuration_that_is_queued(slurm: Any, tmp_path: Path) -> None:
    site = Site(tmp_path, {"tiny": TINY}, slurm.environment, SITE_ENV + "export SBATCH_PARTITION=compute\n")
    held = site.run(
        "sbatch", "--parsable", "--hold", "--job-name=kava-tiny", "--export=CONFIG=tiny", "submit_multi_seed.slurm"
    ).stdout.strip()
    done = site.run("./hpc_run_all.sh", "tiny")
    assert (done.returncode, done.stderr) == (
        2,
        "kava: tiny is already queued (squeue -n kava-tiny); wait for it, or scancel -n kava-tiny\n",
    )
    site.run("scancel", held)


def test_cancelled_run_goes_on_with_the_command_in_its_log(campaign: Campaign) -> None:
    site = campaign.site
    job = campaign.cancelled
    run_dir = site.root / "outputs" / f"seed_{job}"
    site.wait(job)
    assert site.field(job, "JobState") == "CANCELLED"
    assert not (run_dir / "training_done.json").exists()
    command = re.search(r"continue with: (sbatch .*)\n", site.log(job))[1]
    assert command == f"sbatch --export=CONFIG=tiny,SEED=123,OUTPUT_DIR=outputs/seed_{job} submit_kava.sh"
    continued = site.sbatch(command)
    site.wait(continued, campaign.reference)
    assert site.field(continued, "JobState") == "COMPLETED"
    assert weights(run_dir) == weights(site.root / "outputs" / "reference")


def test_each_element_trained_its_own_seed(campaign: Campaign) -> None:
    campaign.site.wait(campaign.array, campaign.aggregation)
    for element, seed in enumerate(SEEDS):
        result = yaml.safe_load((campaign.seed_dir(seed) / "results_mini.yaml").read_text())
        assert (result["run"]["seed"], result["run"]["name"], result["metrics"]["total"]) == (seed, "tiny", 8)
        assert f"seed {seed} of tiny: done" in campaign.site.log(f"{campaign.array}_{element}")
    assert len({tuple(weights(campaign.seed_dir(seed)).values()) for seed in SEEDS}) == 3


def test_aggregation_starts_after_all_three(campaign: Campaign) -> None:
    campaign.site.wait(campaign.array, campaign.aggregation)
    assert campaign.site.field(campaign.aggregation, "JobState") == "COMPLETED", campaign.site.logs()
    ends = [campaign.site.field(f"{campaign.array}_{element}", "EndTime") for element in range(3)]
    assert campaign.site.field(campaign.aggregation, "StartTime") >= max(ends)
    folder = campaign.site.root / "outputs" / "tiny_multi_seed"
    entry = yaml.safe_load((folder / "aggregated_results.yaml").read_text())["tiny"]
    assert entry["num_seeds"] == 3
    accuracies = [yaml.safe_load((campaign.seed_dir(seed) / "results_mini.yaml").read_text())["metrics"]["accuracy"] for seed in SEEDS]
    assert entry["datasets"]["mini"]["accuracy_mean"] == pytest.approx(sum(accuracies) / 3)
    assert (folder / "aggregated_results.json").exists()


def test_preempted_seed_requeues_itself_and_goes_on(campaign: Campaign) -> None:
    campaign.site.wait(campaign.array)
    element = f"{campaign.array}_1"
    log = campaign.site.log(element)
    assert campaign.site.field(element, "Restarts") == "1"
    assert f"requeueing job {element}, which will go on from its newest checkpoint" in log
    assert [start for start in ("start 1,", "start 2,") if start in log] == ["start 1,", "start 2,"]
    stopped = int(re.search(r"stopped by a signal after step (\d+);", log)[1])
    assert 0 < stopped < 160
    assert [campaign.site.field(f"{campaign.array}_{other}", "Restarts") for other in (0, 2)] == ["0", "0"]


def test_preempted_weights_equal_those_of_an_undisturbed_run(campaign: Campaign) -> None:
    campaign.site.wait(campaign.array, campaign.reference)
    assert campaign.site.field(campaign.reference, "Restarts") == "0"
    assert weights(campaign.seed_dir(123)) == weights(campaign.site.root / "outputs" / "reference")


def test_environment_of_the_job_comes_from_the_site_file_alone(campaign: Campaign) -> None:
    campaign.site.wait(campaign.array)
    log = campaign.site.log(f"{campaign.array}_0")
    assert "the submitter's variable is gone" in log
    assert "no module command on" in log
    assert "KAVA_MODULES (cuda/11.8.0 anaconda3) left out" in log


def test_finished_seeds_stay_and_a_failed_one_cancels_the_aggregation(campaign: Campaign, tmp_path: Path, slurm: Any) -> None:
    campaign.site.wait(campaign.array, campaign.aggregation)
    site = Site(tmp_path, {"tiny": TINY}, slurm.environment)
    site.fork_jobs()
    folder = site.root / "outputs" / "tiny_multi_seed"
    shutil.copytree(campaign.site.root / "outputs" / "tiny_multi_seed", folder)
    before = weights(folder / "seed_42")
    done = folder / "seed_123" / "training_done.json"
    done.write_text(json.dumps(json.loads(done.read_text()) | {"config_fingerprint": "another configuration"}))
    array, aggregation = hpc_run_all(site)
    site.wait(array, aggregation, seconds=120)
    assert [site.field(f"{array}_{element}", "JobState") for element in range(3)] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert (site.field(aggregation, "JobState"), site.field(aggregation, "Reason")) == ("CANCELLED", "DependencyNeverSatisfied")
    again = "sbatch --array=1 --export=CONFIG=tiny submit_multi_seed.slurm"
    for stream in ("out", "err"):
        assert (
            f"seed 123 of tiny (training) failed with status 2; the reason stands above and in the .err log; then continue with: {again}"
            in (site.log(f"{array}_1", stream))
        )
    reason = "kava: outputs/tiny_multi_seed/seed_123 holds a finished run of another configuration"
    assert reason in site.log(f"{array}_1", "err").split("kava: seed 123")[0]
    assert weights(folder / "seed_42") == before


def test_two_gpus_are_two_ranks_that_stop_and_go_on_together(campaign: Campaign) -> None:
    site = campaign.site
    job, run_dir = campaign.ranks, site.root / "outputs" / "ranks"
    site.wait(job)
    assert (site.field(job, "JobState"), site.field(job, "Restarts")) == ("COMPLETED", "1"), site.logs()
    (last,) = run_dir.glob("checkpoint-160")
    assert {path.name for path in last.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert len(set(re.findall(r"stopped by a signal after step (\d+)", site.log(job)))) == 1


def test_time_limit_itself_sends_the_signal(campaign: Campaign) -> None:
    """`#SBATCH --signal=B:USR1@120` of the script as it is, met by a limit of some minutes."""
    site, job = campaign.site, campaign.timed
    set_niceness(site, job, 0)
    until(lambda: "requeueing job" in site.log(job), "the signal before the time limit", 150, site.logs)
    site.run("scancel", job)
    log = site.log(job)
    assert site.field(job, "TimeLimit") == f"00:{campaign.minutes:02}:00"
    assert "start 1," in log
    assert f"requeueing job {job}, which will go on from its newest checkpoint" in log
