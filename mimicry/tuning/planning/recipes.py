"""The recipes of a study: those of its complete adapters, and of those in training."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mimicry.common.claims import claimed_by
from mimicry.common.files import canonical_json
from mimicry.common.text import first_few
from mimicry.study import AdapterId, StudyTree
from mimicry.tuning.adapters import (
    AdapterFolder,
    AdapterSpec,
    Evaluated,
    TrainingRun,
    complete_options,
    recipe_differences,
)
from mimicry.tuning.planning.target import Request


@dataclass
class RecipeGroup:
    """Adapters of one recipe and listing of class images; `run` is the record of the first of them."""

    run: TrainingRun
    class_images: str | None
    adapters: list[AdapterId] = field(default_factory=list)

    @property
    def recipe(self) -> Mapping[str, Any]:
        recipe = self.run.recipe
        assert recipe is not None  # one without a recipe is in no group
        return recipe

    def places(self) -> str:
        return _places(self.adapters)

    def differences(self, asked: AdapterSpec) -> list[str]:
        """Say in words in what adapters as `asked` for would differ from these, beside their images."""
        words = asked.differences(self.recipe)
        if _class_images_differ(self.class_images, asked):
            words.append("other class images")
        return words

    def changes_to(self, other: "RecipeGroup") -> list[str]:
        """Say in words how the recipe of another group differs from this one."""
        asked = {**other.recipe, "options": complete_options(other.recipe)}
        words = recipe_differences(self.recipe, asked)
        return words if self.class_images == other.class_images else [*words, "other class images"]


@dataclass(frozen=True)
class StudyRecipes:
    """The recipes of a study, that of most adapters first; `unknown` are adapters without a known one.

    `evaluations` has those with an evaluation loss, by how it was measured, which is not part of the recipe.
    """

    groups: tuple[RecipeGroup, ...] = ()
    unknown: tuple[AdapterId, ...] = ()
    evaluations: Mapping[Evaluated, list[AdapterId]] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        tree: StudyTree,
        adapters: Iterable[AdapterId],
        without: Collection[AdapterId] = (),
        more: Iterable[tuple[AdapterId, TrainingRun, bool]] = (),
    ) -> "StudyRecipes":
        """Read the records of those `adapters` that are complete or in training, but for those `without`.

        `more` are others, whose records were read already, each with whether it has weights.
        """
        records = [
            (adapter, folder.readable_run, folder.has_weights)
            for adapter in adapters
            if adapter not in without
            for folder in [AdapterFolder(tree.adapter_dir(adapter))]
            # A training of another call is to end as an adapter of the study.
            if folder.has_weights or claimed_by(folder.path)
        ]
        unknown = []
        evaluations: dict[Evaluated, list[AdapterId]] = defaultdict(list)
        by_key: dict[str, RecipeGroup] = {}
        # Most records of a study have the same recipe, value by value.
        seen: list[tuple[Mapping[str, Any], str | None, RecipeGroup]] = []
        for adapter, run, has_weights in (*more, *records):
            if not _tells_recipe(run, has_weights=has_weights):
                unknown += [adapter] if has_weights else []
                continue
            recipe, images = run.recipe or {}, run.class_image_listing
            group = next(
                (group for known, listing, group in seen if (listing, known) == (images, recipe)), None
            )
            if group is None:
                # Records of several versions may have other options and yet the same recipe.
                same = {**recipe, "options": complete_options(recipe), "class_images": images}
                group = by_key.setdefault(canonical_json(same), RecipeGroup(run, images))
                seen.append((recipe, images, group))
            group.adapters.append(adapter)
            if run.evaluated is not None:
                evaluations[run.evaluated].append(adapter)
        groups = sorted(by_key.values(), key=lambda group: -len(group.adapters))
        return cls(tuple(groups), tuple(unknown), dict(evaluations))

    @property
    def is_mixed(self) -> bool:
        return len(self.groups) > 1

    def others(self, asked: AdapterSpec) -> list[RecipeGroup]:
        return [group for group in self.groups if group.differences(asked)]

    def by_adapter(self) -> dict[AdapterId, RecipeGroup]:
        return {adapter: group for group in self.groups for adapter in group.adapters}


def evaluation_remarks(recipes: StudyRecipes, asked: int = 0) -> list[str]:
    """Return which evaluation losses of a study, or with `asked` timesteps, must not be compared."""
    most_first = sorted(recipes.evaluations.items(), key=lambda item: -len(item[1]))
    ways = {way: f"{way} ({_places(adapters)})" for way, adapters in most_first}
    remarks = []
    if len(ways) > 1:
        named = "; ".join(ways.values())
        remarks.append(f"evaluation losses were measured differently and must not be compared: {named}")
    others = [words for way, words in ways.items() if len(way.timesteps) != asked]
    if asked and others:
        remarks.append(
            f"--eval-timesteps {asked} makes evaluation losses that must not be compared with those at "
            f"{'; '.join(others)}"
        )
    return remarks


def mixed_notes(request: Request, recipes: StudyRecipes) -> tuple[str, ...]:
    """Return what the record of each training says of a study that is mixed on purpose."""
    if not request.allow_mixed_recipes:
        return ()
    others = [
        f"{len(group.adapters)} ({group.places()}): {', '.join(group.differences(request.spec))}"
        for group in recipes.others(request.spec)
    ]
    if not others:
        return ()
    return (f"mixed recipes, by --allow-mixed-recipes; adapters of others: {'; '.join(others)}",)


def study_remarks(request: Request, recipes: StudyRecipes) -> tuple[str, ...]:
    """Return what a plan says of the recipes of the study that it goes with."""
    remarks = list(mixed_notes(request, recipes))
    others = recipes.others(request.spec) if recipes.groups else []
    if others and request.retrain_stale:
        words = [f"{group.places()} ({', '.join(group.differences(request.spec))})" for group in others]
        remarks.append(
            f"still of another recipe: {'; '.join(words)}; type the same options with --retrain-stale for "
            f"these"
        )
    evaluates = request.stack.takes_options and request.train_script is None
    remarks += evaluation_remarks(recipes, request.config.eval_timesteps if evaluates else 0)
    if recipes.unknown:
        names = [f"{one.condition}/{one.artist}" for one in recipes.unknown]
        remarks.append(f"no record tells the recipe of {first_few(names)}, so it is not compared")
    return tuple(remarks)


def _places(adapters: Iterable[AdapterId]) -> str:
    counts = Counter(str(adapter.condition) for adapter in adapters)
    return ", ".join(f"{condition} {count}" for condition, count in counts.items())


def _tells_recipe(run: TrainingRun, *, has_weights: bool) -> bool:
    if not run.recipe or complete_options(run.recipe) is None:
        return False
    # Weights without their sha256 are those of another training than the record is about.
    return not has_weights or run.weights_sha256 is not None


def _class_images_differ(recorded: str | None, asked: AdapterSpec) -> bool:
    images = asked.class_images
    # Those that are still to be generated are not known yet.
    if images is None or recorded is None or images.missing():
        return False
    try:
        return images.listing_sha256() != recorded
    except OSError:
        return True
