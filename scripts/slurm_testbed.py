"""A real Slurm on loopback, of one node or several, for tests and for trying the Slurm scripts on a laptop.

Install it with scripts/slurm_install.sh.

    python scripts/slurm_testbed.py                          # prints an `export SLURM_CONF=...` line, runs until Ctrl-C
    python scripts/slurm_testbed.py -- ./hpc_run_all.sh mini # runs one command in it, waits for its jobs, stops

A node declares eight GPUs that no hardware stands behind, so that scripts asking for `--gres=gpu:1` run, and the
partitions gpu, compute and cpu. Everything lives in one private directory; no service, no account, no port below 1024.
"""

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo", "munged", "mungekey")
READY_SECONDS = 30
PR_SET_PDEATHSIG = 1

SLURM_CONF = """\
ClusterName=testbed
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={root}/log/jobcomp.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
ReturnToService=2
MailProg=/bin/true
KillWait=30
MinJobAge=600
JobRequeue=1
SlurmdParameters=config_overrides
GresTypes=gpu
DefMemPerCPU=1000
{nodes}
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=compute Nodes=ALL MaxTime=INFINITE State=UP
PartitionName=cpu Nodes=ALL MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeAddr=127.0.0.1 NodeHostname={host} Port={port} CPUs=64 RealMemory=512000 Gres=gpu:8 State=UNKNOWN"
GRES_CONF = "AutoDetect=off\nName=gpu File=/dev/tty[0-7]\n"


def missing_programs() -> list[str]:
    """Slurm and munge programs that this machine lacks; empty when a testbed can run."""
    return [name for name in PROGRAMS if _find(name) is None]


class Testbed:
    """The daemons and what a client needs to talk to them.

    Args:
        nodes: how many nodes this machine plays: node1, node2, ...

    Raises:
        RuntimeError: a program is missing, or a daemon was not ready within `READY_SECONDS`; the message ends with its log.
    """

    __test__ = False  # pytest would take the name for a test class

    def __init__(self, nodes: int = 1) -> None:
        self.nodes = [f"node{number + 1}" for number in range(nodes)]
        if missing := missing_programs():
            raise RuntimeError(f"no {', '.join(missing)}: run scripts/slurm_install.sh")
        # Not below pytest's own directory: munge refuses a socket path beyond 108 characters.
        self.root = Path(tempfile.mkdtemp(prefix="slurm-testbed-", dir="/tmp"))
        self.config = self.root / "slurm.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SQUEUE", "SCANCEL"))}
        self.environment["SLURM_CONF"] = str(self.config)
        self.environment["PATH"] = self.environment.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"

    def start(self) -> None:
        """Start munged, slurmctld and slurmd, each once the one before it answers."""
        self.root.chmod(0o755)
        for name in ("munge", "state", "spool", "run", "log"):
            (self.root / name).mkdir(mode=0o755)
        host = socket.gethostname().split(".")[0]
        controller_port, *node_ports = _free_ports(1 + len(self.nodes))
        nodes = "\n".join(NODE.format(name=name, host=host, port=port) for name, port in zip(self.nodes, node_ports, strict=True))
        user = pwd.getpwuid(os.getuid()).pw_name
        self.config.write_text(SLURM_CONF.format(host=host, user=user, root=self.root, controller_port=controller_port, nodes=nodes))
        (self.root / "gres.conf").write_text(GRES_CONF)
        munge = self.root / "munge"
        self._call("mungekey", "--create", f"--keyfile={munge}/munge.key")
        files = [
            f"--{name}-file={munge}/munge.{suffix}" for name, suffix in (("key", "key"), ("pid", "pid"), ("seed", "seed"), ("log", "log"))
        ]
        self._spawn("munged", "--foreground", *files, f"--socket={munge}/munge.socket")
        self._until("munged", (munge / "munge.socket").exists)
        self._spawn("slurmctld", "-D", "-f", str(self.config))
        self._until("slurmctld", lambda: " UP" in self.client("scontrol", "ping"))
        for name in self.nodes:
            (self.root / "spool" / name).mkdir(mode=0o755)
            self._spawn("slurmd", "-D", "-f", str(self.config), "-N", name)
        self._until("slurmd", lambda: self.client("sinfo", "-h", "-o", "%D %T", "-p", "gpu").strip() == f"{len(self.nodes)} idle")

    def stop(self) -> None:
        """Cancel what still runs, end the daemons by their process ids, remove the directory."""
        if len(self._daemons) == 2 + len(self.nodes):
            self.client("scancel", "--user", pwd.getpwuid(os.getuid()).pw_name)
            with contextlib.suppress(RuntimeError):
                self._until("scancel", lambda: not self.client("squeue", "-h").strip())
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> "Testbed":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def client(self, *command: str) -> str:
        """Standard output of a Slurm command; empty when it failed."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60).stdout

    def _call(self, name: str, *arguments: str) -> None:
        subprocess.run([str(_find(name)), *arguments], env=self.environment, check=True, capture_output=True)

    def _spawn(self, name: str, *arguments: str) -> None:
        with open(self.root / "log" / f"{name}.out", "wb") as log:
            daemon = subprocess.Popen(
                [str(_find(name)), *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )
        self._daemons.append(daemon)

    def _until(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if ready():
                return
            time.sleep(0.1)
        log = self.root / "log" / f"{name}.out"
        raise RuntimeError(f"{name} was not ready after {READY_SECONDS} s: {log.read_text()[-2000:] if log.exists() else 'no log'}")


def _find(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _die_with_parent() -> None:
    """Runs in a daemon before it is one: a test runner that is killed outright takes its Slurm along."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM stops the testbed as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.suppress(KeyboardInterrupt):
        yield


def main(arguments: list[str]) -> int:
    """Run a testbed until Ctrl-C, or for one command and the jobs it submits."""
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if command[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    with _interruptible(), Testbed() as testbed:
        if not command:
            print(f"export SLURM_CONF={testbed.config}    # in another shell; Ctrl-C here stops it", flush=True)
            signal.pause()
        status = subprocess.run(command, env=testbed.environment).returncode
        while testbed.client("squeue", "-h").strip():
            time.sleep(1)
        return status
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RuntimeError as error:
        sys.exit(f"slurm_testbed: {error}")
