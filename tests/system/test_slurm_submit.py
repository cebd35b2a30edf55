"""hpc_run_all.sh without a Slurm: what it would submit, what it refuses, in which words."""

import os
import subprocess
from pathlib import Path

import pytest

from helpers.slurm_site import REPOSITORY, Site, login_environment

GUIDE = ["llama1b_aug", "llama1b_aug_nl", "qwen05b_aug", "llama3b_aug"]
SIX = ["llama1b_aug", "llama1b_aug_nl", "qwen05b_aug", "qwen05b_aug_nl", "llama3b_aug", "llama3b_aug_nl"]
SCRIPTS = ["hpc_run_all.sh", "submit_kava.sh", "submit_multi_seed.slurm", "submit_aggregate.slurm"]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, dict.fromkeys(SIX, ""), login_environment(), site_env="")


def arrays(output: str) -> list[str]:
    """Configurations of the arrays that a dry run shows."""
    lines = [line for line in output.splitlines() if "--array" in line]
    return [line.split("--export=CONFIG=")[1].split()[0] for line in lines]


@pytest.mark.parametrize(
    ("arguments", "expected"), [([], GUIDE), (["--all"], SIX), (["llama1b_aug", "qwen05b_aug"], ["llama1b_aug", "qwen05b_aug"])]
)
def test_dry_run_shows_an_array_and_an_aggregation_per_configuration(site: Site, arguments: list[str], expected: list[str]) -> None:
    done = site.run("./hpc_run_all.sh", "--dry-run", *arguments)
    assert done.returncode == 0
    assert arrays(done.stdout) == expected
    assert done.stdout.count("--array=0-2 ") == len(expected)
    assert done.stdout.count("--dependency=afterok:<job> --kill-on-invalid-dep=yes") == len(expected)


def test_dry_run_follows_the_seeds_and_partition_of_the_site(tmp_path: Path) -> None:
    site = Site(tmp_path, {"mini": ""}, login_environment(), 'KAVA_SEEDS="1 2 3 4 5"\nKAVA_AGGREGATE_PARTITION=cpu\n')
    done = site.run("./hpc_run_all.sh", "--dry-run", "mini")
    assert "--array=0-4 " in done.stdout
    assert done.stdout.splitlines()[2].split()[:3] == ["sbatch", "--job-name=kava-mini-mean", "--partition=cpu"]


def test_jobs_get_what_the_guide_exports(site: Site) -> None:
    """By name: values may hold commas. Nothing else of the submitter's is handed on."""
    assert "--export=CONFIG=llama1b_aug submit_" in site.run("./hpc_run_all.sh", "--dry-run", "llama1b_aug").stdout
    site.environment |= {"HF_HOME": "/a,b", "TRANSFORMERS_CACHE": "/a", "WANDB_MODE": "offline", "KAVA_ACTIVATE": "true", "HFX": "x"}
    shown = site.run("./hpc_run_all.sh", "--dry-run", "llama1b_aug").stdout
    assert shown.count("--export=CONFIG=llama1b_aug,HF_HOME,KAVA_ACTIVATE,TRANSFORMERS_CACHE,WANDB_MODE submit_") == 2


def in_a_job(site: Site, commands: str) -> str:
    """Commands behind the functions that jobs share, as bash runs them there."""
    done = site.run("bash", "-c", f"source scripts/slurm_common.sh; {commands}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_job_takes_what_it_lacks_from_the_users_shell(site: Site) -> None:
    """The guide appends its exports to ~/.bashrc, and `sbatch --export=CONFIG=x` drops them."""
    (site.root / ".bashrc").write_text("echo welcome\nexport HF_HOME=/share/models\nexport WANDB_MODE=online OTHER=x\n")
    site.environment |= {"HOME": str(site.root), "WANDB_MODE": "offline"}
    site.environment.pop("OTHER", None)
    assert in_a_job(site, 'kava_shell_exports; echo "$HF_HOME $WANDB_MODE ${OTHER:-}"') == "/share/models offline \n"


@pytest.mark.parametrize(("own", "called"), [("kava-seeds", "update JobId=7_2 JobName=kava-x\n"), ("kava-llama1b_aug", "")])
def test_a_job_without_a_name_of_its_own_is_called_by_its_configuration(site: Site, own: str, called: str) -> None:
    (site.root / "scontrol").write_text('#!/bin/bash\necho "$*"\n')
    (site.root / "scontrol").chmod(0o755)
    site.environment |= {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_NAME": own}
    assert in_a_job(site, "PATH=$PWD:$PATH kava_call kava-x") == called


def test_the_site_file_is_the_users(site: Site) -> None:
    """Not tracked, and made from the example where it is missing."""
    listed = subprocess.run(["git", "check-ignore", "configs/site.env"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode == 128:
        pytest.skip("no git checkout")
    assert listed.stdout == "configs/site.env\n"
    (site.root / "configs" / "site.env").unlink()
    (site.root / "configs" / "site.env.example").write_text("# example\n")
    site.run("./hpc_run_all.sh", "--dry-run", "llama1b_aug")
    assert (site.root / "configs" / "site.env").read_text() == "# example\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["llama1b_agu"], "configuration 'llama1b_agu' is neither a file nor a name in configs/; did you mean 'llama1b_aug'?"),
        (
            ["qwen05b_aug", "qwen_aug_nl"],
            "configuration 'qwen_aug_nl' is neither a file nor a name in configs/; did you mean 'qwen05b_aug_nl'?",
        ),
        (["x; touch owned"], "CONFIG 'x; touch owned' is no configuration name: letters, digits and _ . / - only"),
        (["$(touch owned)"], "CONFIG '$(touch owned)' is no configuration name: letters, digits and _ . / - only"),
        (["--quick"], "unknown option '--quick'; ./hpc_run_all.sh --help lists them"),
    ],
)
def test_a_wrong_argument_submits_nothing_and_is_named(site: Site, arguments: list[str], sentence: str) -> None:
    done = site.run("./hpc_run_all.sh", "--dry-run", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"kava: {sentence}\n")
    assert not (site.root / "owned").exists()


@pytest.mark.parametrize(
    ("script", "variables", "sentence"),
    [
        ("submit_kava.sh", {"CONFIG": "x; rm -rf ~"}, "CONFIG 'x; rm -rf ~' is no configuration name"),
        ("submit_multi_seed.slurm", {"CONFIG": "x; rm -rf ~"}, "CONFIG 'x; rm -rf ~' is no configuration name"),
        ("submit_aggregate.slurm", {"CONFIG": "$(touch owned)"}, "CONFIG '$(touch owned)' is no configuration name"),
        ("submit_aggregate.slurm", {"CONFIG": "llama1b_aug\ntouch owned"}, "CONFIG 'llama1b_aug\ntouch owned' is no configuration name"),
        ("submit_kava.sh", {"SEED": "x[$(touch owned)]"}, "SEED 'x[$(touch owned)]' is no seed"),
        ("submit_kava.sh", {"OUTPUT_DIR": "$(touch owned)"}, "OUTPUT_DIR '$(touch owned)' is no directory name"),
        ("submit_kava.sh", {"OUTPUT_DIR": "-rf"}, "OUTPUT_DIR '-rf' is no directory name"),
        ("submit_kava.sh", {"SLURM_GPUS_ON_NODE": "x[$(touch owned)]"}, "SLURM_GPUS_ON_NODE is 'x[$(touch owned)]'"),
        ("submit_kava.sh", {"SLURM_JOB_ID": "x[$(touch owned)]"}, "SLURM_JOB_ID is 'x[$(touch owned)]'"),
        ("submit_multi_seed.slurm", {"SLURM_ARRAY_TASK_ID": "x[$(touch owned)]"}, "SLURM_ARRAY_TASK_ID is 'x[$(touch owned)]'"),
        ("submit_multi_seed.slurm", {"SLURM_RESTART_COUNT": "x[$(touch owned)]"}, "SLURM_RESTART_COUNT is 'x[$(touch owned)]'"),
    ],
)
def test_nothing_that_reaches_a_shell_is_run(site: Site, script: str, variables: dict[str, str], sentence: str) -> None:
    """Jobs started by hand, with variables that hold commands: one line, exit code 2, nothing executed, nothing made."""
    site.environment |= {"CONFIG": "llama1b_aug", "SLURM_JOB_ID": "1"} | variables
    before = sorted(site.root.rglob("*"))
    done = site.run("bash", script)
    assert done.returncode == 2
    assert done.stderr.startswith(f"kava: {sentence}")
    assert sorted(site.root.rglob("*")) == before


def test_without_sbatch_one_sentence_says_what_to_do(site: Site) -> None:
    tools = site.root / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "find", "sed", "sort", "awk", "id", "env"):
        (tools / name).symlink_to(next(p for d in os.get_exec_path() if (p := Path(d) / name).exists()))
    site.environment["PATH"] = str(tools)
    done = site.run("./hpc_run_all.sh", "llama1b_aug")
    assert done.returncode == 2
    assert done.stderr == (
        "kava: there is no sbatch here: run this on a login node of a Slurm cluster, "
        "or python run_multi_seed.py --config llama1b_aug on this machine\n"
    )


@pytest.mark.parametrize("seeds", ["42,123", "042 123", "42 123 42"])
def test_broken_site_settings_are_named(tmp_path: Path, seeds: str) -> None:
    site = Site(tmp_path, {"mini": ""}, login_environment(), f'KAVA_SEEDS="{seeds}"\n')
    done = site.run("./hpc_run_all.sh", "--dry-run", "mini")
    assert done.returncode == 2
    assert done.stderr.startswith(f"kava: KAVA_SEEDS in configs/site.env is '{seeds}'; write whole numbers with one space between")


def test_the_shipped_site_settings_change_nothing() -> None:
    before = subprocess.run(["bash", "-c", "set -o posix; set"], capture_output=True, text=True).stdout.splitlines()
    command = f"source {REPOSITORY}/configs/site.env.example; set -o posix; set"
    after = subprocess.run(["bash", "-c", command], capture_output=True, text=True).stdout.splitlines()
    names = {line.split("=")[0] for line in after} - {line.split("=")[0] for line in before}
    assert not names - {"BASH_EXECUTION_STRING", "_"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_executable_and_valid_bash(name: str) -> None:
    assert os.access(REPOSITORY / name, os.X_OK)
    assert subprocess.run(["bash", "-n", REPOSITORY / name]).returncode == 0
