"""A real Slurm on this machine: munge, a controller, and two virtual nodes with two GPUs each.

The GPUs are links to /dev/null. There is no accounting, no cgroup and no systemd. Two partitions share the
nodes, and jobs of `urgent` preempt those of `main`.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

NODES = ("n1", "n2")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
_START_SECONDS = 120.0
_CONF = """\
ClusterName=mimicry
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
ReturnToService=2
SlurmdTimeout=20
MaxArraySize={max_array_size}
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=2000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=2000 Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=30 State=UP
PartitionName=urgent Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF State=UP
"""
_GRES = """\
AutoDetect=off
NodeName=n1 Name=gpu File={folder}/nvidia[0-1]
NodeName=n2 Name=gpu File={folder}/nvidia[0-1]
"""


def why_not() -> str:
    """Say why there can be no Slurm here; empty when there can."""
    paths = os.environ["PATH"] + ":/usr/sbin"
    missing = [name for name in _PROGRAMS if shutil.which(name, path=paths) is None]
    if missing:
        return f"no {', '.join(missing)} here; apt-get install slurm-wlm munge"
    if importlib.util.find_spec("submitit") is None:
        return "no submitit here; pip install submitit"
    return "" if os.geteuid() == 0 else "the daemons of Slurm need root"


@dataclass
class RealSlurm:
    """The daemons, and what a test does to them."""

    folder: Path
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What programs of Slurm need to find this one."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *words: str) -> str:
        """Run a program of Slurm and return its output."""
        return subprocess.run(
            words, env=os.environ | self.environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def running_on(self, node: str) -> list[str]:
        """Return the ids of the jobs that run on a node."""
        lines = self.call("squeue", "-h", "-r", "-t", "RUNNING", "-w", node, "-o", "%i").splitlines()
        return [line.strip() for line in lines]

    def kill_node(self, node: str) -> None:
        """End all processes of a node at once, as a power cut does, and tell the controller."""
        daemon = self._processes.pop(node)
        own = list(self._processes_of(node))
        # What watches over the processes goes first, or it would still report how they ended.
        steps = {parent for one in own for parent in one.parents() if parent.name() == "slurmstepd"}
        for process in (psutil.Process(daemon.pid), *steps, *own):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        daemon.wait()
        self.call("scontrol", "update", f"nodename={node}", "state=down", "reason=killed")

    def start_node(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node)
        self.await_true(lambda: self.call("sinfo", "-h", "-N", "-n", node, "-o", "%T").startswith(("i", "d")))
        self.call("scontrol", "update", f"nodename={node}", "state=resume")

    def await_true(self, is_so: Callable[[], bool], seconds: float = _START_SECONDS) -> None:
        """Wait until `is_so` returns True.

        Raises:
            TimeoutError: it did not in time; the message has the end of the controller's log.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if is_so():
                    return
            except subprocess.CalledProcessError:
                pass  # the controller is not up yet
            time.sleep(0.1)
        log = self.folder / "slurmctld.log"
        raise TimeoutError(log.read_text()[-2000:] if log.exists() else "there is no log of the controller")

    def _processes_of(self, node: str) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            if (
                environment.get("SLURMD_NODENAME") == node
                and environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]
            ):
                yield process

    def _start(self, name: str, *words: str) -> None:
        path = f"{os.environ['PATH']}:/usr/sbin"
        with (self.folder / f"{name}.out").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [shutil.which(words[0], path=path) or words[0], *words[1:]],
                env=os.environ | self.environment | {"PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def up(self, max_array_size: int) -> None:
        """Start everything, and wait until both nodes are idle."""
        self.folder.mkdir(parents=True)
        (self.folder / "state").mkdir()
        for number in range(2):
            (self.folder / f"nvidia{number}").symlink_to("/dev/null")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        names = {
            "folder": self.folder,
            "host": socket.gethostname().partition(".")[0],
            "ports": _free_ports(3),
            "max_array_size": max_array_size,
        }
        (self.folder / "slurm.conf").write_text(_CONF.format_map(names))
        (self.folder / "gres.conf").write_text(_GRES.format_map(names))
        self._start(
            "munged",
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--socket={self.folder / 'munge.socket'}", f"--pid-file={self.folder / 'munged.pid'}"),
            *(f"--log-file={self.folder / 'munged.log'}", f"--seed-file={self.folder / 'munged.seed'}"),
        )
        self.await_true((self.folder / "munge.socket").exists)
        self._start("slurmctld", "slurmctld", "-D", "-i")
        for node in NODES:
            self._start(node, "slurmd", "-D", "-N", node)
        self.await_true(lambda: self.call("sinfo", "-h", "-N", "-p", "main", "-t", "idle").count("\n") == 2)

    def down(self) -> None:
        """Cancel all jobs and stop what was started, the controller last."""
        if "slurmctld" in self._processes:
            subprocess.run(
                ["scancel", "-u", "root"], env=os.environ | self.environment, check=False, timeout=60
            )
            with suppress(TimeoutError):  # its nodes may be gone
                self.await_true(lambda: not self.call("squeue", "-h"), 30)
        for node in NODES:
            for process in list(self._processes_of(node)):
                process.kill()
        for name in (*NODES, "slurmctld", "munged"):
            process_ = self._processes.pop(name, None)
            if process_ is None:
                continue
            process_.send_signal(signal.SIGTERM)
            try:
                process_.wait(20)
            except subprocess.TimeoutExpired:
                process_.kill()
                process_.wait()


@contextmanager
def real_slurm(folder: Path, max_array_size: int = 1001) -> Iterator[RealSlurm]:
    """Bring a Slurm up for the body. The folder has a short path, as a socket's path is short."""
    slurm = RealSlurm(folder)
    try:
        slurm.up(max_array_size)
        yield slurm
    finally:
        slurm.down()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def without_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without variables of a job that the tests may run in."""
    return {name: value for name, value in environment.items() if not name.startswith(("SLURM", "SUBMITIT"))}
