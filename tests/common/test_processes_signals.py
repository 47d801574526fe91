"""Signals that must wait, and signals that only ask for something."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mimicry.common.processes import (
    PARENT_PIPE,
    Interrupted,
    drop_held_signals,
    held_signal,
    signal_noted,
    stop_signals_held,
    stop_signals_raise,
)
from tests.common.child_scripts import python


class TestHeldSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_the_body_is_done_first(self, number: signal.Signals) -> None:
        done = []
        with stop_signals_raise(), pytest.raises(Interrupted) as caught, stop_signals_held():
            with stop_signals_held():
                os.kill(os.getpid(), number)
                done.append("inner")
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("outer")
        assert done == ["inner", "outer"]
        assert caught.value.number == number

    def test_once_only(self) -> None:
        with stop_signals_raise():
            with pytest.raises(Interrupted), stop_signals_held():
                os.kill(os.getpid(), signal.SIGTERM)
            with stop_signals_held():
                pass

    def test_an_error_of_the_body_comes_first(self) -> None:
        with stop_signals_raise():
            with pytest.raises(KeyError), stop_signals_held():
                os.kill(os.getpid(), signal.SIGTERM)
                raise KeyError("x")
            with pytest.raises(Interrupted), stop_signals_held():
                pass

    def test_what_was_held_does_not_outlive_the_handlers(self) -> None:
        with stop_signals_raise(), pytest.raises(KeyError), stop_signals_held():
            os.kill(os.getpid(), signal.SIGTERM)
            raise KeyError("x")
        with stop_signals_held():
            pass


class TestFurtherSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_one_request_to_stop_may_come_as_several_signals(self, number: signal.Signals) -> None:
        """The system and each parent send signals, and a checkpoint that is being saved must be finished."""
        with stop_signals_raise():
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    def test_a_second_ctrl_c_raises_again(self) -> None:
        with stop_signals_raise():
            for pause in (0.0, 0.51):
                time.sleep(pause)
                with pytest.raises(Interrupted):
                    os.kill(os.getpid(), signal.SIGINT)

    def test_a_second_ctrl_c_kills_where_the_first_is_held_back(self) -> None:
        code = (
            "import os, signal, time\n"
            "from mimicry.common.processes import stop_signals_held, stop_signals_raise\n"
            "with stop_signals_raise(), stop_signals_held():\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "    time.sleep(0.51)\n"
            "    print('saving', flush=True)\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "    print('still there')\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (-signal.SIGINT, "saving\n")

    def test_sigusr1_ends_no_process(self) -> None:
        former = signal.getsignal(signal.SIGUSR1)
        with stop_signals_raise():
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.01)
        assert signal.getsignal(signal.SIGUSR1) is former


def test_a_noted_signal_is_reported_once_and_ends_nothing() -> None:
    former = signal.getsignal(signal.SIGUSR1)
    with signal_noted(signal.SIGUSR1) as came:
        assert not came()
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert [came(), came()] == [True, False]
    assert signal.getsignal(signal.SIGUSR1) is former


def test_a_held_signal_can_be_read_and_dropped() -> None:
    with stop_signals_raise(), stop_signals_held():
        assert held_signal() is None
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert held_signal() == signal.SIGHUP
        drop_held_signals()
        assert held_signal() is None


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    deaf = """
        from mimicry.common.processes import stop_with_parent
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop_with_parent(kill_after_seconds=0.1)
        time.sleep(60)
    """
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path, PARENT_PIPE: "1"}
    with subprocess.Popen(python(tmp_path, deaf), env=environment, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == -signal.SIGKILL
