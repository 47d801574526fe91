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
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psutil

from tests.left_behind import end_processes, lives, with_variable
from tests.ports import number_of, reserved_port

NODES = ("n1", "n2")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "munge")
# Long, as a busy machine may take long; a daemon that ends is noticed at once.
_PATIENCE_SECONDS = 600.0
_IN_SERVICE = ("idle", "mixed", "allocated", "planned", "completing")
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
SlurmdTimeout=300
MessageTimeout=60
MaxArraySize={max_array_size}
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=2000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=2000 Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=300 State=UP
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


def without_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without variables of a job that the tests may run in."""
    return {name: value for name, value in environment.items() if not name.startswith(("SLURM", "SUBMITIT"))}


@dataclass
class RealSlurm:
    """The daemons, and what a test does to them."""

    folder: Path
    # Programs that use it and that end with the test, such as calls of apply_tuning.
    users: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    # Ends everything when this process is gone, whatever ended it.
    _guard: subprocess.Popen[bytes] | None = None
    _ports: list[socket.socket] = field(default_factory=list)
    # Without what a single test adds: a node that it starts anew outlives it.
    _environment: dict[str, str] = field(default_factory=lambda: without_slurm(os.environ))

    @property
    def environment(self) -> dict[str, str]:
        """What programs of Slurm need to find this one."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *words: str) -> str:
        """Run a program of Slurm and return its output."""
        environment = without_slurm(os.environ) | self.environment
        return subprocess.run(
            words, env=environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def jobs(self) -> set[str]:
        """Return the ids of all jobs that have not ended."""
        return set(self.call("squeue", "-h", "-r", "-o", "%i").split())

    def seconds_of(self, job: str) -> float:
        """Return how long ago a job has begun; 0 if it does not run."""
        begin = self.call("squeue", "-h", "-t", "RUNNING", "-j", job, "-o", "%S").strip()
        return time.time() - datetime.fromisoformat(begin).timestamp() if begin else 0.0

    def running_on(self, nodes: str) -> list[str]:
        """Return the ids of the jobs that run on a node, or on one of several with commas between them."""
        return self.call("squeue", "-h", "-r", "-t", "RUNNING", "-w", nodes, "-o", "%i").split()

    def kill_node(self, node: str) -> None:
        """End all processes of a node at once, as a power cut does, and tell the controller."""
        daemon = self._processes.pop(node)
        daemon.kill()
        daemon.wait()
        # What watches over the processes goes first, or it would still report how they ended.
        end_processes(lambda: self._watchers_on(node))
        end_processes(lambda: self._processes_on(node))
        self.call("scontrol", "update", f"nodename={node}", "state=down", "reason=killed")

    def start_node(self, node: str) -> None:
        """Start a node that was killed, and wait until it takes jobs."""
        self._start(node, "slurmd", "-D", "-N", node)
        self.await_true(lambda: self._takes_jobs(node))

    def _takes_jobs(self, node: str) -> bool:
        """Return whether the controller gives jobs to a node; one that was drained is resumed.

        One that was down comes back by itself when its daemon reports, see ReturnToService. To ask for it
        would be too early before that, and is refused after it.
        """
        state = self.call("sinfo", "-h", "-N", "-p", "main", "-n", node, "-o", "%T").strip()
        if state.startswith("drain"):
            self.call("scontrol", "update", f"nodename={node}", "state=resume")
        return state in _IN_SERVICE

    def await_true(self, is_so: Callable[[], bool], seconds: float = _PATIENCE_SECONDS) -> None:
        """Wait until `is_so` returns True.

        Raises:
            RuntimeError: a daemon has ended meanwhile.
            TimeoutError: it did not in time; the message has the end of the controller's log.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} has ended: {self._log_of(name)}")
            # The controller may not be up yet, or what is asked about has ended.
            with suppress(subprocess.CalledProcessError, subprocess.TimeoutExpired):
                if is_so():
                    return
            time.sleep(0.1)
        raise TimeoutError(self._log_of("slurmctld"))

    def _log_of(self, name: str) -> str:
        """Return the ends of what a daemon has printed and logged."""
        names = (f"{name}.out", f"slurmd.{name}.log" if name in NODES else f"{name}.log")
        paths = [path for path in (self.folder / file for file in names) if path.exists()]
        return "\n".join(path.read_text("utf-8", "replace")[-2000:] for path in paths) or "there is no log"

    def _watchers_on(self, node: str) -> Iterator[psutil.Process]:
        """Yield what slurmd has started to watch over jobs, known by its log as its environment is wiped."""
        daemon = self._processes.get(node)
        log = str(self.folder / f"slurmd.{node}.log")
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                is_watcher = process.name() in ("slurmd", "slurmstepd") and lives(process)
                is_daemon = daemon is not None and process.pid == daemon.pid
                if is_watcher and not is_daemon and log in {file.path for file in process.open_files()}:
                    yield process

    def _processes_on(self, node: str) -> Iterator[psutil.Process]:
        """Yield what runs on a node, but for slurmd itself."""
        yield from self._watchers_on(node)
        for process in self._using_it():
            with suppress(psutil.Error):
                if process.environ().get("SLURMD_NODENAME") == node:
                    yield process

    def programs_on(self, node: str, script: str) -> list[psutil.Process]:
        """Return the processes on a node whose first argument is a script of this name."""
        found = []
        for process in self._processes_on(node):
            with suppress(psutil.Error):
                if any(word.endswith(f"/{script}") for word in process.cmdline()[1:2]):
                    found.append(process)
        return found

    def _using_it(self) -> list[psutil.Process]:
        return with_variable("SLURM_CONF", self.environment["SLURM_CONF"])

    def _start(self, name: str, *words: str) -> None:
        path = f"{self._environment['PATH']}:/usr/sbin"
        with (self.folder / f"{name}.out").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [shutil.which(words[0], path=path) or words[0], *words[1:]],
                env=self._environment | self.environment | {"PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def up(self, max_array_size: int) -> None:
        """Start everything, and wait until both nodes take jobs."""
        self.folder.mkdir(parents=True)
        self._guard = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self.folder)],
            cwd=Path(__file__).parents[2],
            env=self._environment,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        (self.folder / "state").mkdir()
        for number in range(2):
            (self.folder / f"nvidia{number}").symlink_to("/dev/null")
        self._ports += [reserved_port() for _ in range(1 + len(NODES))]
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        names = {
            "folder": self.folder,
            "host": socket.gethostname().partition(".")[0],
            "ports": [number_of(port) for port in self._ports],
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
        # The socket is there before anything answers.
        self.await_true(lambda: bool(self.call("munge", "-n", f"--socket={self.folder / 'munge.socket'}")))
        self._start("slurmctld", "slurmctld", "-D", "-i")
        for node in NODES:
            self._start(node, "slurmd", "-D", "-N", node)
        self.await_true(lambda: all(self._takes_jobs(node) for node in NODES))

    def clear(self) -> None:
        """End the programs that use it, and cancel all jobs.

        Raises:
            TimeoutError: there are jobs left; their nodes may be gone.
        """
        for process in self.users:
            process.kill()
            process.wait()
        self.users.clear()

        def is_empty() -> bool:
            # A job that was being put back into the queue may not have heard of an earlier one.
            self.call("scancel", "-u", "root")
            return not self.jobs()

        self.await_true(is_empty, 120)

    def down(self) -> None:
        """Cancel all jobs and stop what was started, the controller last.

        Raises:
            AssertionError: there was more to stop; the message names it.
        """
        is_clear = False
        if "slurmctld" in self._processes:
            with suppress(TimeoutError, RuntimeError):
                self.clear()
                is_clear = True
        for name in (*NODES, "slurmctld", "munged"):
            process = self._processes.pop(name, None)
            if process is None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        while self._ports:
            self._ports.pop().close()
        left = self.end_everything(20 if is_clear else 0)
        if self._guard is not None:
            self._guard.communicate(timeout=60)
        assert not left or not is_clear, f"Slurm has left processes behind: {left}"

    def end_everything(self, grace_seconds: float = 0.0) -> list[str]:
        """Kill all processes that are left of it; return what they were."""
        return end_processes(
            lambda: {*self._using_it(), *self._watchers_on(NODES[0]), *self._watchers_on(NODES[1])},
            grace_seconds,
        )


@contextmanager
def real_slurm(folder: Path, max_array_size: int = 1001) -> Iterator[RealSlurm]:
    """Bring a Slurm up for the body. The folder has a short path, as a socket's path is short."""
    slurm = RealSlurm(folder)
    try:
        slurm.up(max_array_size)
        yield slurm
    finally:
        slurm.down()


if __name__ == "__main__":
    sys.stdin.read()
    RealSlurm(Path(sys.argv[1])).end_everything()
