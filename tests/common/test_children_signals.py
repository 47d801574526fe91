"""Signals that must wait, and signals that only ask for something."""

import os
import signal

import pytest

from mimicry.common.children import Interrupted, signal_noted, stop_signals_held, stop_signals_raise


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
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), signal.SIGTERM)

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


def test_a_noted_signal_is_told_once_and_ends_nothing() -> None:
    former = signal.getsignal(signal.SIGUSR1)
    with signal_noted(signal.SIGUSR1) as came:
        assert not came()
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert [came(), came()] == [True, False]
    assert signal.getsignal(signal.SIGUSR1) is former
