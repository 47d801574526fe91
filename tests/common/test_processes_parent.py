"""Children notice that their parent is gone, however it went."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mimicry.common.processes import PARENT_PIPE, watch_parent
from tests.common.child_scripts import DEADLINE_SECONDS, is_running, python, told, wait_until


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class TestParent:
    WATCHER = """
        from mimicry.common.processes import stop_with_parent
        def stop(number, frame):
            tell("stopped by", number)
            os._exit(0)
        signal.signal(signal.SIGTERM, stop)
        stop_with_parent()
        tell("watcher", os.getpid())
        time.sleep(60)
    """

    def test_its_sigkill_is_noticed_through_a_launcher(self, tmp_path: Path) -> None:
        """Parent, launcher, watcher: only standard input goes all the way."""
        watcher = python(tmp_path, self.WATCHER)
        launcher = python(tmp_path, f"import subprocess; subprocess.run({watcher!r})")
        parent = python(
            tmp_path,
            f"""
            from mimicry.common.processes import Child
            child = Child({launcher!r}, output=None, environment=os.environ)
            time.sleep(60)
            """,
        )
        path = os.pathsep.join(filter(None, sys.path))
        with subprocess.Popen(parent, env={**os.environ, "PYTHONPATH": path}) as process:
            pid = int(told(tmp_path / "watcher"))
            assert is_running(pid)
            process.kill()
        assert told(tmp_path / "stopped by") == str(int(signal.SIGTERM))
        wait_until(lambda: not is_running(pid))

    def test_a_child_that_watches_nothing_is_ended_too(self, tmp_path: Path) -> None:
        deaf = python(tmp_path, "tell('deaf', os.getpid()); time.sleep(60)")
        parent = python(
            tmp_path,
            f"""
            from mimicry.common.processes import Child
            child = Child({deaf!r}, output=None, environment=os.environ)
            time.sleep(60)
            """,
        )
        path = os.pathsep.join(filter(None, sys.path))
        with subprocess.Popen(parent, env={**os.environ, "PYTHONPATH": path}) as process:
            pid = int(told(tmp_path / "deaf"))
            process.kill()
        wait_until(lambda: not is_running(pid))

    def test_without_a_parents_pipe_nothing_is_watched(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Standard input of a program started by hand may end at once: </dev/null."""
        monkeypatch.delenv(PARENT_PIPE, raising=False)
        words = python(tmp_path, self.WATCHER.replace("time.sleep(60)", "time.sleep(0.3); tell('lived')"))
        path = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, "PYTHONPATH": path}
        subprocess.run(words, stdin=subprocess.DEVNULL, env=environment, check=True, timeout=DEADLINE_SECONDS)
        assert (tmp_path / "lived").exists()
        assert not (tmp_path / "stopped by").exists()

    def test_bytes_on_the_pipe_are_not_its_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ends = os.pipe()
        saved = os.dup(0)
        gone: list[bool] = []
        os.dup2(ends[0], 0)
        try:
            monkeypatch.setenv(PARENT_PIPE, "1")
            os.write(ends[1], b"x" * 3000)
            watch_parent(lambda: gone.append(True))
            time.sleep(0.1)
            assert gone == []
            os.close(ends[1])
            wait_until(lambda: gone == [True])
        finally:
            os.dup2(saved, 0)
            os.close(saved)
            os.close(ends[0])
