"""A user's checkout on a login node: the repository's own scripts by symbolic link, its own configs/, logs/ and outputs/."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from helpers.forked_python import python

REPOSITORY = Path(__file__).resolve().parents[2]
LINKED = [
    "hpc_run_all.sh",
    "submit_kava.sh",
    "submit_multi_seed.slurm",
    "submit_aggregate.slurm",
    "train.py",
    "evaluate.py",
    "run_multi_seed.py",
    "aggregate_multi_seed.py",
    "scripts",
    "src",
]
# This test's own Python.
ACTIVATE = f"KAVA_ACTIVATE='PATH={Path(sys.executable).parent}:$PATH'\n"
# A `python3` in the checkout's bin/ comes before it: that of `Site.fork_jobs`.
ACTIVATE_FORKS = ACTIVATE.replace("PATH=", "PATH=$PWD/bin:", 1)
# What the guide's cluster would have, on a machine that has no `module` command.
SITE_ENV = f"""
unset -f module
KAVA_MODULES="cuda/11.8.0 anaconda3"
{ACTIVATE_FORKS}
export OMP_NUM_THREADS=1 KAVA_CACHE=$PWD/cache
[[ -z ${{SLURM_JOB_ID:-}} ]] || echo "the submitter's variable is ${{SUBMITTERS_VARIABLE:-gone}}"
"""


class Site:
    """One checkout, and the commands a user types in it."""

    def __init__(self, root: Path, configs: dict[str, str], environment: dict[str, str], site_env: str = SITE_ENV) -> None:
        self.root = root
        self.environment = environment | {"SUBMITTERS_VARIABLE": "here"}
        for name in LINKED:
            (root / name).symlink_to(REPOSITORY / name)
        for name in ("configs", "logs"):
            (root / name).mkdir()
        (root / "configs" / "site.env").write_text((REPOSITORY / "configs" / "site.env.example").read_text() + site_env)
        for name, text in configs.items():
            (root / "configs" / f"{name}.yaml").write_text(text)

    def fork_jobs(self) -> None:
        """Jobs run in forks of one process that has imported everything, where the site's file activates that Python."""
        (self.root / "bin").mkdir()
        (self.root / "bin" / "python3").symlink_to(python())

    def run(self, *command: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout's root."""
        return subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=seconds)

    def sbatch(self, command: str) -> str:
        """Submit by a command line as a user types it; returns the job id."""
        done = self.run("bash", "-c", command)
        assert done.returncode == 0, done.stderr
        found = re.fullmatch(r"Submitted batch job (\d+)\n", done.stdout)
        assert found, done.stdout
        return found[1]

    def log(self, job: str, stream: str = "out") -> str:
        """The log of a job, or of an array element written ``12_1``; empty before it starts."""
        path = self.root / "logs" / f"kava_{job}.{stream}"
        return path.read_text() if path.exists() else ""

    def field(self, job: str, name: str) -> str:
        """One field of ``scontrol show job``, such as JobState or Restarts."""
        text = self.run("scontrol", "show", "job", "-o", job).stdout
        found = re.search(rf"\b{name}=(\S*)", text)
        assert found, f"job {job} has no {name}: {text}"
        return found[1]

    def wait(self, *jobs: str, seconds: float = 300) -> None:
        """Until the jobs have left the queue."""
        until(lambda: not self.run("squeue", "-h", "-j", ",".join(jobs)).stdout.strip(), f"jobs {jobs} to end", seconds, self.logs)

    def logs(self) -> str:
        """All logs, for a failure's message."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted((self.root / "logs").glob("kava_*")))


def until(condition: Callable[[], bool], what: str, seconds: float = 120, explain: Callable[[], str] = str) -> None:
    """Poll a condition; on expiry fail with what was awaited and an explanation."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{explain()}"
        time.sleep(0.2)


def login_environment() -> dict[str, str]:
    """This process's environment without Slurm, as where it is not installed, and without what jobs are given."""
    left_out = ("SLURM", "SBATCH", "HF_", "KAVA_", "WANDB_", "TRANSFORMERS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
