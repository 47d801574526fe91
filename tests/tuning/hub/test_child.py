"""Which errors of the Hub's client are retried, after how long, and what the user is told."""

from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from mimicry.tuning.hub.child import RetriesExhausted, explain, retry, status_of


class Refused(Exception):
    """An error with an answer, as the client raises it."""

    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(f"status {status}")
        self.response = SimpleNamespace(status_code=status, headers=headers)


class OfflineModeIsEnabled(ConnectionError):
    """By its name one of the client's."""


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds


def failing(*errors: Exception) -> Any:
    """Return a call that raises each of `errors`, and then returns how often it was called."""
    left, count = list(errors), 0

    def call() -> int:
        nonlocal count
        count += 1
        if left:
            raise left.pop(0)
        return count

    return call


@pytest.mark.parametrize(
    "error",
    [
        *(Refused(status) for status in (408, 412, 429, 500, 502, 503, 504)),
        ConnectionResetError(),
        TimeoutError(),
        httpx2.RemoteProtocolError("cut"),
        httpx2.ConnectError("no such host"),
    ],
    ids=repr,
)
def test_transient_errors_are_retried(error: Exception, slept: list[float]) -> None:
    told: list[str] = []
    assert retry(failing(error, error), (1.0, 2.0), told.append) == 3
    assert slept == [1.0, 2.0]
    assert told[0].startswith(f"waiting 1 s to ask again, after {type(error).__name__}")


@pytest.mark.parametrize(
    "error",
    [*(Refused(status) for status in (400, 401, 403, 404, 501)), ValueError("x"), OfflineModeIsEnabled()],
    ids=repr,
)
def test_other_errors_are_raised_at_once(error: Exception, slept: list[float]) -> None:
    with pytest.raises(type(error)):
        retry(failing(error), (1.0, 2.0), print)
    assert slept == []


def test_a_request_that_the_client_retried_is_not_retried_again(slept: list[float]) -> None:
    def call() -> None:
        raise RetriesExhausted from Refused(503)

    with pytest.raises(RetriesExhausted) as caught:
        retry(call, (1.0,), print)
    assert slept == []
    assert status_of(caught.value) == 503
    assert "answered with status 503 (Refused: status 503)" in explain(caught.value, None)


def test_the_last_error_is_raised(slept: list[float]) -> None:
    with pytest.raises(Refused, match="502"):
        retry(failing(Refused(500), Refused(503), Refused(502)), (1.0, 2.0), print)


@pytest.mark.parametrize(
    ("asked", "seconds"), [("7", 7.0), ("0", 2.0), ("99999", 120.0), ("Wed, 1 Jan", 2.0)]
)
def test_the_hub_may_ask_for_a_longer_wait(asked: str, seconds: float, slept: list[float]) -> None:
    retry(failing(Refused(429, **{"Retry-After": asked})), (2.0,), print)
    assert slept == [seconds]


@pytest.mark.parametrize(
    "said",
    [
        "403 Forbidden: Private repository storage limit reached, please upgrade your plan",
        "You have exceeded your Quota",
    ],
)
def test_a_hub_without_room_is_told_from_a_token_without_rights(said: str) -> None:
    error = Refused(403)
    error.args = (said,)

    full, forbidden = explain(error, "lab"), explain(Refused(403), "lab")

    assert "no more room for private files of lab" in full
    assert "the token is not at fault" in full and said in full
    assert "may not write to lab" in forbidden
