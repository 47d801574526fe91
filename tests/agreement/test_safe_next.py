"""What a status says to type next loses no step, and trains nothing that nobody asked for."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mimicry.study.tree import AdapterId
from tests.agreement.following import drawing, follow
from tests.agreement.programs import plan_words, run, status_words
from tests.agreement.situations import SITUATIONS
from tests.agreement.study import STACK, Study, new_study, typed_words
from tests.small_study import ANNA, MIST, ORIGINAL, listing

STOPPED = [name for name in SITUATIONS if "run of" in name]
STALE = (
    *("one image more", "another recipe than most", "max train steps edited in study toml"),
    *("captions changed", "class images changed", "a copied folder"),
)


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    with new_study(tmp_path / "lab") as study:
        yield study


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_next_command_is_safe(name: str, study: Study) -> None:
    SITUATIONS[name](study)

    assert follow(study).wrong == []


@pytest.mark.parametrize("name", STOPPED)
def test_a_stopped_run_goes_on_with_its_own_options(name: str, study: Study) -> None:
    SITUATIONS[name](study)
    variant = "r8" if "variant" in name else None

    followed = follow(study)

    assert "--rank 8" in followed.line and "--max-train-steps 200" in followed.line
    assert ("--variant r8" in followed.line) == (variant is not None)
    record = followed.trained[AdapterId(STACK, ORIGINAL, ANNA, variant).key]
    assert (record["resumed_from"], record["options"]["rank"], record["steps"]) == (14, 8, 200)


def test_broken_weights_that_verify_found_are_trained_again(study: Study) -> None:
    SITUATIONS["weights of another condition"](study)
    study.answer = None
    run(["mimicry", "verify", *study.words])

    followed = follow(study)

    assert (followed.wrong, [*followed.trained]) == ([], [AdapterId(STACK, ORIGINAL, ANNA).key])


def test_a_changed_image_that_verify_found_is_shown_by_the_plan(study: Study) -> None:
    SITUATIONS["an image changed with the same size and time"](study)
    run(["mimicry", "verify", *study.words])

    followed = follow(study)

    assert followed.wrong == [] and followed.ended is not None
    assert followed.line.startswith("apply_tuning ")
    assert "--retrain-stale" in followed.line + followed.ended.out


def test_nothing_is_drawn_with_weights_of_another_condition(study: Study) -> None:
    SITUATIONS["weights of another condition"](study)
    with drawing():
        ended = run(["mimicry", "samples", *study.words])

    drawn = {path.parent for path in study.folder.rglob("mimic_art/**/*.png")}
    assert (ended.code, len(drawn)) == (1, 3)
    assert study.tree.samples_of(AdapterId(STACK, ORIGINAL, ANNA)) not in drawn


def test_the_end_of_a_study(study: Study) -> None:
    study.put_all()
    assert follow(study).line.startswith("mimicry samples ")
    assert follow(study).line.startswith("mimicry report ")
    assert (study.folder / "report" / "index.html").exists()

    done = follow(study)
    assert done.ended is None and done.line.startswith("nothing: all is ")
    study.put_adapter(MIST, finished_at="2999-01-02T03:04:05+00:00")
    assert follow(study).line.startswith(("mimicry samples ", "mimicry report "))


class TestVariants:
    @pytest.mark.parametrize("known", ["tree", "study.toml"])
    def test_a_bare_name_that_nobody_knows_is_refused(self, known: str, study: Study) -> None:
        study.put_all()
        study.put_adapter(ORIGINAL, ANNA, replace(study.config, rank=8), variant="rank-8")
        if known == "study.toml":
            shutil.rmtree(study.tree.lora / f"{STACK}@rank-8")
            study.write_file(variants="[variants.rank-8]\nrank = 8\n")
        before = listing(study.tree.data_root)

        ended = run(["apply_tuning", *study.words, "--no-push-to-hub", "--variant=rank-9"])

        assert (ended.code, ended.out) == (2, "")
        assert "--variant rank-9" in ended.err and "rank-8" in ended.err
        assert listing(study.tree.data_root) == before

    def test_a_name_alone_in_an_empty_study_is_refused(self, study: Study) -> None:
        ended = run(["apply_tuning", *study.words, "--no-push-to-hub", "--variant=rank-9", "--dry-run"])

        assert (ended.code, ended.out) == (2, "")

    def test_a_name_with_a_recipe_is_a_study_beside(self, study: Study) -> None:
        study.put_all()
        study.typed = typed_words(replace(study.config, rank=8))

        assert run(plan_words(study, "--variant=rank-8", "--dry-run")).code == 0

    @pytest.mark.parametrize("name", STALE)
    def test_it_is_offered_wherever_stale_ones_may_be_replaced(self, name: str, study: Study) -> None:
        SITUATIONS[name](study)

        for words in (
            plan_words(study, "--dry-run"),
            plan_words(study, "--dry-run", "--json"),
            plan_words(study),
            status_words(study),
            ["mimicry", "verify", *study.words],
        ):
            ended = run(words)
            assert ("--retrain-stale" in ended.out) <= ("--variant" in ended.out), words

    @pytest.mark.parametrize("missing", [False, True])
    def test_another_rank_in_a_begun_study_may_be_a_variant(self, missing: bool, study: Study) -> None:
        study.put_all()
        if missing:
            study.remove_adapter()
        study.typed = typed_words(replace(study.config, rank=8))

        for ended in (run(plan_words(study, "--dry-run")), run(plan_words(study))):
            assert "--retrain-stale" in ended.out + ended.err
            assert "--variant" in ended.out + ended.err


@pytest.mark.parametrize(
    "program", ["apply_tuning", "mimicry status", "mimicry verify", "mimicry upload", "mimicry samples"]
)
def test_all_means_all_that_there_is(program: str, study: Study) -> None:
    study.put_all()
    study.write_file()
    more = ["--dry-run"] if program.endswith(("tuning", "upload", "samples")) else []
    everything = [*program.split(), *study.words, *more]

    ended = run([*everything, "--protection=all", "--countermeasure=all"])

    assert (ended.code, ended.err) == (0, "")
    # The next command keeps the filters.
    shown = [line for line in ended.out.splitlines() if not line.startswith("next: ")]
    assert shown == [line for line in run(everything).out.splitlines() if not line.startswith("next: ")]
    assert run([*everything, "--protection=mits"]).code == 2


def test_all_in_a_report(study: Study) -> None:
    study.put_all()
    words = ["mimicry", "report", *study.words, "--protection=all", "--countermeasure=all"]

    assert run([*words, "--paintings=0", "--output=out"]).code == 0
