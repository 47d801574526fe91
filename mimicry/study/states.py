"""The states of an adapter, used by plan, batch, tracker, verification, samples and records."""

from enum import StrEnum


class State(StrEnum):
    """The state of one adapter, or of one picture that an adapter draws."""

    # Not trained yet.
    PENDING = "waiting"
    # Trained, verified, and as requested.
    COMPLETE = "complete"
    # Complete, but with another recipe or other images than requested.
    STALE = "stale"
    # Its files are damaged or do not belong together.
    BROKEN = "broken"
    # Being trained, according to its record.
    RUNNING = "running"
    # Another call is working in its folder.
    CLAIMED = "claimed"
    # A cluster has a job for it that has not ended.
    QUEUED = "queued"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    # It cannot be trained; the plan says why.
    BLOCKED = "blocked"
    # There are no images of it, and nobody has said that there must be.
    NO_DATA = "no data"

    @classmethod
    def _missing_(cls, value: object) -> "State | None":
        # As trackers of the first version have it.
        return cls.PENDING if value == "pending" else None

    @property
    def has_adapter(self) -> bool:
        """Whether there are whole weights in this state: as asked for, or of another recipe or images."""
        return self in (State.COMPLETE, State.STALE)
