"""How an adapter is: one vocabulary for plan, batch, tracker, verification, samples and records."""

from enum import StrEnum


class State(StrEnum):
    """The state of one adapter, or of one picture that an adapter draws."""

    # It is still to be made.
    PENDING = "pending"
    # It is there, verified, and what is asked for.
    COMPLETE = "complete"
    # It is whole, but of another recipe or other images than asked for.
    STALE = "stale"
    # Its files do not hold what they promise.
    BROKEN = "broken"
    # A training is at work, by its own record.
    RUNNING = "running"
    # Another call is at work in its folder.
    CLAIMED = "claimed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    # Something forbids to train it.
    BLOCKED = "blocked"
