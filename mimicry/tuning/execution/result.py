"""What became of one target of a plan."""

from dataclasses import dataclass

from mimicry.study import State
from mimicry.tuning.planning import Target

# When so many trainings or uploads in a row fail alike, the others would fail as well.
SAME_FAILURES = 3


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one target.

    `state` is how its adapter is now; `trained` and `uploaded` say what this call did. `error` is empty for a
    good end; `owed` says why an upload is still pending. `evaluation` is the loss on the original art before
    and after, in words; empty when there was none. `numerics` says in what the adapter's numerics differ from
    those of its sisters. `warnings` are what the training itself has found odd. `seconds` are those of this
    call, `earlier_seconds` those before it, if it went on from a checkpoint.
    """

    target: Target
    state: State
    trained: bool = False
    uploaded: bool = False
    seconds: float = 0.0
    earlier_seconds: float = 0.0
    loss: float | None = None
    error: str = ""
    owed: str = ""
    evaluation: str = ""
    numerics: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """What the summary says."""
        if self.trained:
            return "trained"
        if self.uploaded:
            return "uploaded"
        if self.owed:
            return "owed"
        return "skipped" if self.state in (State.COMPLETE, State.STALE) else self.state.value


def same_failure(failures: list[str]) -> bool:
    """Return whether the last failures are so many and alike that the others would fail as well."""
    return len(failures) >= SAME_FAILURES and len(set(failures[-SAME_FAILURES:])) == 1
