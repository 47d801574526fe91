"""Child processes: stopped whole, and told when their parent is gone. Every wait has an end of its own."""

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mimicry.common.processes import (
    PARENT_PIPE,
    Child,
    Interrupted,
    last_lines,
    process_start,
    running_child,
    stop_signals_raise,
)
from tests.common.child_scripts import DEADLINE_SECONDS, is_running, python, told, wait_until


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Child]]:
    """Start Python code as a `Child`; whatever the test does, it is gone afterwards."""
    children = []

    def start_child(code: str) -> Child:
        children.append(Child(python(tmp_path, code), output=None, environment=os.environ))
        return children[-1]

    yield start_child
    for child in children:
        child.stop(signal.SIGKILL, 0)


@pytest.fixture
def orphans_come_to_us() -> Iterator[None]:
    """Let this process, which does not reap them, be the parent of all orphans."""
    set_child_subreaper, libc = 36, ctypes.CDLL(None, use_errno=True)
    if libc.prctl(set_child_subreaper, 1, 0, 0, 0) != 0:
        pytest.skip("this kernel has no subreapers")
    yield
    libc.prctl(set_child_subreaper, 0, 0, 0, 0)


class TestChild:
    def test_end_and_exit_code(self, start: Callable[[str], Child]) -> None:
        assert start("sys.exit(7)").wait(DEADLINE_SECONDS) == 7
        child = start("time.sleep(60)")
        assert child.wait(0.01) is None

    def test_output_goes_to_the_log(self, tmp_path: Path) -> None:
        with (tmp_path / "log").open("ab") as log:
            code = "print('out', flush=True); os.write(2, b'err')"
            child = Child(python(tmp_path, code), output=log, environment=os.environ)
            assert child.wait(DEADLINE_SECONDS) == 0
            child.stop(signal.SIGTERM, 0)
        assert (tmp_path / "log").read_bytes() == b"out\nerr"

    def test_the_environment_is_the_given_one(self, tmp_path: Path) -> None:
        words = python(tmp_path, f"tell('got', os.environ.get('A', '') + os.environ['{PARENT_PIPE}'])")
        with running_child(words, output=None, environment={"A": "a"}, grace_seconds=1) as child:
            assert child.wait(DEADLINE_SECONDS) == 0
        assert told(tmp_path / "got") == "a1"

    def test_it_is_a_session_of_its_own(self, start: Callable[[str], Child], tmp_path: Path) -> None:
        child = start("tell('session', os.getsid(0)); time.sleep(60)")
        assert int(told(tmp_path / "session")) == child.pid != os.getsid(0)


class TestAsk:
    @staticmethod
    def ask(tmp_path: Path, code: str, silence_seconds: float) -> tuple[list[bytes], bytes]:
        words = python(tmp_path, code)
        with running_child(words, output=subprocess.PIPE, environment=os.environ, grace_seconds=0) as child:
            return list(child.ask(b"how are you", silence_seconds)), child.diagnostics

    def test_a_request_and_its_answer(self, tmp_path: Path) -> None:
        code = """
            print("you said", sys.stdin.readline(), flush=True)
            os.write(2, b"x" * 5000 + b"end")
            print("unfinished", end="")
        """
        answer, diagnostics = self.ask(tmp_path, code, DEADLINE_SECONDS)
        assert answer == [b"you said how are you", b""]
        assert diagnostics.endswith(b"xxend")
        assert len(diagnostics) == 4000

    def test_a_child_that_reads_nothing(self, tmp_path: Path) -> None:
        assert self.ask(tmp_path, "os.close(0); print('bye')", DEADLINE_SECONDS) == ([b"bye"], b"")

    def test_a_silent_child_is_killed(self, tmp_path: Path) -> None:
        code = "os.fork(); tell(f'pid{os.getpid()}', os.getpid()); time.sleep(60)"
        with pytest.raises(TimeoutError):
            self.ask(tmp_path, code, 1.0)
        assert not any(is_running(int(path.read_text())) for path in tmp_path.glob("pid*"))

    def test_standard_error_is_a_sign_of_life(self, tmp_path: Path) -> None:
        code = """
            for _ in range(8):
                time.sleep(0.25)
                os.write(2, b".")
            print("done")
        """
        assert self.ask(tmp_path, code, 1.5) == ([b"done"], b"." * 8)


class TestStop:
    def test_the_child_may_clean_up(self, start: Callable[[str], Child], tmp_path: Path) -> None:
        child = start(
            """
            def stop(number, frame):
                time.sleep(0.3)
                tell("stopped by", number)
                sys.exit(3)
            signal.signal(signal.SIGINT, stop)
            tell("ready")
            time.sleep(60)
            """
        )
        told(tmp_path / "ready")
        child.stop(signal.SIGINT, DEADLINE_SECONDS)
        assert told(tmp_path / "stopped by") == str(int(signal.SIGINT))
        assert child.wait(0) == 3

    def test_grandchildren_keep_their_grace_when_the_child_dies_at_once(
        self, start: Callable[[str], Child], tmp_path: Path
    ) -> None:
        """As under accelerate: the launcher dies of SIGTERM while the trainer writes its record."""
        child = start(
            """
            if os.fork() == 0:
                def stop(number, frame):
                    time.sleep(0.5)
                    tell("record")
                    os._exit(0)
                signal.signal(signal.SIGTERM, stop)
                tell("trainer", os.getpid())
                time.sleep(60)
            time.sleep(60)
            """
        )
        trainer = int(told(tmp_path / "trainer"))
        child.stop(signal.SIGTERM, DEADLINE_SECONDS)
        assert (tmp_path / "record").exists()
        assert not is_running(trainer)
        assert child.wait(0) == -signal.SIGTERM

    def test_a_child_that_ignores_the_signal_is_killed_after_the_grace(
        self, start: Callable[[str], Child], tmp_path: Path
    ) -> None:
        child = start(
            """
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if os.fork() == 0:
                os.fork()
                tell(f"grandchild{os.getppid() != int(os.environ.get('X', 0))}{os.getpid()}")
                time.sleep(60)
            tell("ready")
            time.sleep(60)
            """
        )
        told(tmp_path / "ready")
        wait_until(lambda: len(list(tmp_path.glob("grandchild*[0-9]"))) == 2)
        pids = [int("".join(filter(str.isdigit, path.name))) for path in tmp_path.glob("grandchild*[0-9]")]
        assert all(map(is_running, pids))
        child.stop(signal.SIGTERM, 0.2)
        assert not any(map(is_running, [*pids, child.pid]))
        assert child.wait(0) == -signal.SIGKILL

    def test_processes_left_by_a_finished_child_are_killed(
        self, start: Callable[[str], Child], tmp_path: Path
    ) -> None:
        child = start(
            """
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if os.fork() == 0:
                tell("orphan", os.getpid())
                time.sleep(60)
            """
        )
        orphan = int(told(tmp_path / "orphan"))
        assert child.wait(DEADLINE_SECONDS) == 0
        assert is_running(orphan)
        child.stop(signal.SIGTERM, 0.2)
        assert not is_running(orphan)

    @pytest.mark.usefixtures("orphans_come_to_us")
    def test_a_zombie_orphan_is_not_waited_for(self, start: Callable[[str], Child], tmp_path: Path) -> None:
        """Without an init process orphans stay zombies; the grace here is longer than a test may last."""
        child = start(
            """
            if os.fork() == 0:
                tell("orphan", os.getpid())
                os._exit(0)
            time.sleep(0.1)
            os._exit(0)
            """
        )
        orphan = int(told(tmp_path / "orphan"))
        assert child.wait(DEADLINE_SECONDS) == 0
        wait_until(lambda: not is_running(orphan))
        child.stop(signal.SIGTERM, 10_000)
        assert os.waitpid(orphan, 0) == (orphan, 0)

    def test_twice(self, start: Callable[[str], Child]) -> None:
        child = start("time.sleep(60)")
        for _ in range(2):
            child.stop(signal.SIGTERM, DEADLINE_SECONDS)
        assert child.wait(0) == -signal.SIGTERM

    def test_one_that_was_asked_gets_no_second_signal(
        self, start: Callable[[str], Child], tmp_path: Path
    ) -> None:
        child = start(
            """
            def stop(number, frame):
                tell("asked", number)
            signal.signal(signal.SIGINT, stop)
            tell("ready")
            signal.pause()
            time.sleep(0.3)
            """
        )
        told(tmp_path / "ready")
        child.ask_to_stop(signal.SIGINT, DEADLINE_SECONDS)
        told(tmp_path / "asked")
        assert not child.has_stopped()
        (tmp_path / "asked").unlink()
        child.stop(signal.SIGINT, DEADLINE_SECONDS)
        assert child.has_stopped()
        assert child.wait(0) == 0
        assert not (tmp_path / "asked").exists()

    def test_one_that_is_asked_again_hurries(self, start: Callable[[str], Child], tmp_path: Path) -> None:
        child = start(
            """
            def stop(number, frame):
                tell("asked", number)
                time.sleep(600)
            signal.signal(signal.SIGINT, stop)
            tell("ready")
            signal.pause()
            """
        )
        told(tmp_path / "ready")
        child.ask_to_stop(signal.SIGINT, 10_000)
        told(tmp_path / "asked")
        child.ask_to_stop(signal.SIGINT, 10_000)
        child.stop(signal.SIGINT, 10_000)
        assert child.wait(0) == -signal.SIGKILL


class TestRunningChild:
    def test_nothing_is_left_after_an_error(self, tmp_path: Path) -> None:
        words = python(tmp_path, "time.sleep(60)")
        with (
            pytest.raises(RuntimeError, match="in the body"),
            running_child(words, output=None, environment=os.environ, grace_seconds=5) as child,
        ):
            raise RuntimeError("in the body")
        assert child.wait(0) == -signal.SIGTERM

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_the_stop_signal_is_passed_on(self, number: signal.Signals, tmp_path: Path) -> None:
        words = python(
            tmp_path,
            """
            def stop(number, frame):
                tell("got", number)
                sys.exit(0)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, stop)
            tell("ready")
            time.sleep(60)
            """,
        )
        with (
            pytest.raises(Interrupted),
            running_child(words, output=None, environment=os.environ, grace_seconds=DEADLINE_SECONDS),
        ):
            told(tmp_path / "ready")
            raise Interrupted(number)
        assert told(tmp_path / "got") == str(int(number))

    def test_a_second_ctrl_c_ends_the_grace(self, tmp_path: Path) -> None:
        words = python(
            tmp_path, "signal.signal(signal.SIGINT, signal.SIG_IGN); tell('ready'); time.sleep(60)"
        )
        with (
            stop_signals_raise(),
            pytest.raises(Interrupted),
            running_child(words, output=None, environment=os.environ, grace_seconds=10_000) as child,
        ):
            told(tmp_path / "ready")
            threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT)).start()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        assert child.wait(0) == -signal.SIGKILL

    def test_a_signal_during_the_grace_is_not_lost(self, tmp_path: Path) -> None:
        words = python(
            tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN); tell('ready'); time.sleep(60)"
        )
        with (
            stop_signals_raise(),
            pytest.raises(Interrupted) as caught,
            running_child(words, output=None, environment=os.environ, grace_seconds=10_000) as child,
        ):
            told(tmp_path / "ready")
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGHUP)).start()
            raise RuntimeError("a stall")
        assert caught.value.number == signal.SIGHUP
        assert child.wait(0) == -signal.SIGHUP


class TestStopSignals:
    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
    )
    def test_become_an_exception_with_an_exit_code(self, number: signal.Signals, code: int) -> None:
        before = signal.getsignal(number)
        with pytest.raises(Interrupted) as caught, stop_signals_raise():
            os.kill(os.getpid(), number)
            time.sleep(60)
        assert caught.value.exit_code == code
        assert str(caught.value) == number.name
        assert signal.getsignal(number) == before

    def test_one_that_was_ignored_stays_ignored(self) -> None:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with stop_signals_raise():
                os.kill(os.getpid(), signal.SIGHUP)
                assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGHUP, before)

    def test_are_not_caught_by_except_exception(self) -> None:
        assert not issubclass(Interrupted, Exception)


class TestProcessStart:
    @pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="compares with /proc")
    def test_it_does_not_change_with_the_clock(self) -> None:
        """The kernel's ticks since the boot, to the tick; the time of day would move when it is set."""
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        start = process_start(os.getpid())
        assert start is not None
        assert round(float(start) * os.sysconf("SC_CLK_TCK")) == ticks
        assert process_start(os.getpid()) == start

    def test_a_zombie_has_ended(self, tmp_path: Path) -> None:
        with subprocess.Popen(python(tmp_path, "time.sleep(60)")) as process:
            assert process_start(process.pid) is not None
            process.kill()
            wait_until(lambda: process_start(process.pid) is None)
        assert process_start(process.pid) is None


class TestLastLines:
    def test_missing_and_empty(self, tmp_path: Path) -> None:
        assert last_lines(tmp_path / "log", 3) == []
        (tmp_path / "log").touch()
        assert last_lines(tmp_path / "log", 3) == []

    def test_the_last_ones_without_blanks(self, tmp_path: Path) -> None:
        (tmp_path / "log").write_text("a\nb\n\n  \nc\nd")
        assert last_lines(tmp_path / "log", 2) == ["c", "d"]
        assert last_lines(tmp_path / "log", 9) == ["a", "b", "c", "d"]

    def test_from_an_offset(self, tmp_path: Path) -> None:
        (tmp_path / "log").write_text("old\n")
        offset = (tmp_path / "log").stat().st_size
        assert last_lines(tmp_path / "log", 5, offset) == []
        with (tmp_path / "log").open("a") as file:
            file.write("new\nnewer\n")
        assert last_lines(tmp_path / "log", 5, offset) == ["new", "newer"]
        (tmp_path / "log").write_text("x")
        assert last_lines(tmp_path / "log", 5, offset) == []

    def test_progress_bars_and_bytes_that_are_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "log").write_bytes(b"10%\r20%\r30%\r\n\xff\xfe caf\xe9\n")
        assert last_lines(tmp_path / "log", 3) == ["20%", "30%", "\ufffd\ufffd caf\ufffd"]

    def test_only_the_end_of_a_large_log_is_read(self, tmp_path: Path) -> None:
        with (tmp_path / "log").open("wb") as file:
            file.truncate(3 << 30)
            file.seek(0, 2)
            file.write(b"\nlast\n")
        assert last_lines(tmp_path / "log", 1) == ["last"]
