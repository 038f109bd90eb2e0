"""A real Slurm of one node: munged, slurmctld and slurmd in a process namespace of their own, so
that all of them, and whatever their jobs have started, end with it.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "unshare")
NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")
START_S = 30.0
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={slurmd}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=30
MinJobAge=300
SchedulerParameters=sched_interval=1
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=60 State=UP OverSubscribe=FORCE:4
"""
START = """
set -e
munged --foreground --force --key-file {folder}/munge.key --socket {folder}/munge.socket \
    --pid-file {folder}/munged.pid --log-file {folder}/munged.log --seed-file {folder}/seed &
until [ -S {folder}/munge.socket ]; do sleep 0.1; done
slurmctld -D -i &
slurmd -D &
wait
"""


def why_not() -> str:
    """What is missing for a Slurm here; empty when nothing is."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} here: apt-get install slurm-wlm munge"
    if os.getuid():
        return "slurmctld and slurmd want root"
    trial = subprocess.run([*NAMESPACE, "true"], capture_output=True, timeout=30)
    return "" if not trial.returncode else "no process namespace can be made here"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[Mapping[str, str]]:
    """A Slurm whose files are in ``folder``; yields the environment for its commands."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    folder.chmod(0o755)
    facts = {"host": socket.gethostname(), "ctld": free_port(), "slurmd": free_port()}
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, **facts))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
        "SLURM_CONF": str(folder / "slurm.conf"),
    }
    with (folder / "daemons.log").open("wb") as log:
        daemons = subprocess.Popen(
            [*NAMESPACE, "--kill-child", "bash", "-c", START.format(folder=folder)],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        give_up = time.monotonic() + START_S
        while "idle" not in run(environment, "sinfo", "-h", "-o", "%T"):
            if time.monotonic() > give_up or daemons.poll() is not None:
                logs = [path.read_text() for path in sorted(folder.glob("*.log"))]
                raise RuntimeError("Slurm did not come up: " + "\n".join(logs))
            time.sleep(0.2)
        yield environment
    finally:
        daemons.kill()  # unshare kills the first process of the namespace, and it all others
        daemons.wait()


def run(environment: Mapping[str, str], *command: str) -> str:
    """What a command of Slurm says; empty where it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout if not done.returncode else ""


def state_of(environment: Mapping[str, str], job: str) -> dict[str, str]:
    """What Slurm knows of a job, by Slurm's names."""
    words = run(environment, "scontrol", "show", "job", job).split()
    return dict(word.split("=", 1) for word in words if "=" in word)
