"""The images of each condition of a study, as they lie there now."""

from pathlib import Path

from mimicry.common.errors import UsageError
from mimicry.study import Artist, Condition, ImageFolder, Pairing, StudyTree, training_set
from mimicry.study.quarantine import left_out


class ConditionImages:
    """The images that adapters would be trained on now, paired with the originals."""

    def __init__(self, tree: StudyTree) -> None:
        self._tree = tree
        self._left_out = left_out(tree)
        self._roots: dict[Condition, Path | None] = {}

    def pairing(self, condition: Condition, artist: Artist, hold_out: int) -> Pairing | None:
        """Return an artist's images under a condition; None where there are none.

        Args:
            hold_out: how many paintings are held out of training.
        """
        root = self._root(condition)
        if root is None:
            return None
        original = ImageFolder.read(self._tree.images_of(self._tree.original_art, artist))
        images = ImageFolder.read(self._tree.images_of(root, artist))
        left = self._left_out.get(str(artist), frozenset[str]())
        return training_set(images, original, left, hold_out) if images.names else None

    def _root(self, condition: Condition) -> Path | None:
        if condition not in self._roots:
            try:
                self._roots[condition] = self._tree.source(condition).root
            except UsageError:
                self._roots[condition] = None
        return self._roots[condition]
