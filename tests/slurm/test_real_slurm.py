"""The Slurm of these tests itself: it comes up, comes back, and leaves nothing."""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.left_behind import with_variable
from tests.slurm.cluster_call import ROOT
from tests.slurm.real_slurm import RealSlurm, real_slurm, why_not

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

_IMPORT = "from tests.slurm.real_slurm import real_slurm"


def test_one_that_does_not_come_up_says_why_and_leaves_nothing() -> None:
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm") as name:
        folder = Path(name).resolve() / "s"
        failure = pytest.raises(RuntimeError, match=r"slurmctld has ended: .*MaxArraySize")
        with failure, real_slurm(folder, max_array_size=-1):
            pass
        assert with_variable("SLURM_CONF", str(folder / "slurm.conf")) == []


def test_it_ends_with_the_program_that_started_it() -> None:
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm") as name:
        folder = Path(name).resolve() / "s"
        code = f"with real_slurm(Path({str(folder)!r})) as slurm: os.kill(os.getpid(), signal.SIGKILL)"
        code = f"import os, signal\nfrom pathlib import Path\n{_IMPORT}\n{code}"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
        deadline = time.monotonic() + 60
        while with_variable("SLURM_CONF", str(folder / "slurm.conf")):
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize("drained", [False, True])
def test_a_node_that_was_killed_takes_jobs_again(slurm: RealSlurm, drained: bool) -> None:
    slurm.kill_node("n1")
    if drained:
        slurm.call("scontrol", "update", "nodename=n1", "state=drain", "reason=test")
    slurm.start_node("n1")
    slurm.call("sbatch", "--wait", "--nodelist=n1", "--output=/dev/null", "--wrap=true")


def test_what_a_test_leaves_in_the_queue_is_cancelled(slurm: RealSlurm) -> None:
    slurm.call("sbatch", "--output=/dev/null", "--wrap=sleep 600")
    slurm.await_true(lambda: bool(slurm.running_on("n1,n2")))
    slurm.clear()
    assert not slurm.jobs()
