"""An --overwrite that was stopped, and is taken up by the same command.

Before its first training a call marks the bookmarks of all adapters that it is to train again, each with the
training that made the adapter there is. An adapter is done once it comes from another training. While one of
the selected adapters is marked and not done, the overwrite is unfinished: the next call with --overwrite
takes it up, and leaves alone what is done. A mark needs no clock, and every machine finds the same ones, so
several may work on one overwrite. If the tracker is lost, all are trained again.
"""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mimicry.common.files import utc_now
from mimicry.study import AdapterId
from mimicry.tuning.adapters import AdapterFolder
from mimicry.tuning.adapters.bookmark import Bookmark


@dataclass(frozen=True)
class Overwrite:
    """An overwrite that is to be carried out; `done` are the adapters that it has trained already.

    `name` tells it from others, `trainings` are those of the selected adapters as they were planned: another
    call may train one before this one has marked it.
    """

    name: str = field(default_factory=lambda: f"{utc_now()} {secrets.token_hex(4)}")
    done: frozenset[AdapterId] = frozenset()
    trainings: Mapping[AdapterId, list[str]] = field(default_factory=dict)

    @classmethod
    def find(
        cls, folders: Iterable[tuple[AdapterId, AdapterFolder]], bookmarks: Mapping[str, Mapping[str, Any]]
    ) -> "Overwrite":
        """Return the unfinished overwrite of the selected adapters, or a new one."""
        open_names: set[str] = set()
        done: dict[AdapterId, str] = {}
        trainings: dict[AdapterId, list[str]] = {}
        for adapter, folder in folders:
            trainings[adapter] = training_of(folder)
            mark = Bookmark.from_json(bookmarks.get(adapter.key, {})).overwrite
            if mark is None or not isinstance(mark.get("name"), str):
                continue
            if trainings[adapter] not in ([], mark.get("replaces")):
                done[adapter] = mark["name"]
            else:
                open_names.add(mark["name"])
        if not open_names:
            return cls(trainings=trainings)
        # Two calls may have begun at once: what is done in either is done.
        finished = frozenset(adapter for adapter, name in done.items() if name in open_names)
        return cls(max(open_names), finished, trainings)

    def mark(self, adapter: AdapterId) -> dict[str, Any]:
        """Return the mark of an adapter that is to be trained again."""
        return {"name": self.name, "replaces": self.trainings[adapter]}


def training_of(folder: AdapterFolder) -> list[str]:
    """Return what tells the training of an adapter from any other, copies of the study included.

    It is empty without an adapter. Two trainings of one recipe may leave the same bytes, at other times.
    """
    if not folder.has_weights:
        return []
    run = folder.readable_run
    return [str(run.content.get(key)) for key in ("started_at", "finished_at")] + [str(run.weights_sha256)]
