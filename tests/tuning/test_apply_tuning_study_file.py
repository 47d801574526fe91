"""apply_tuning with a study.toml: its recipe is that of the plan, and is not contradicted."""

import json
from typing import Any

import pytest

from mimicry.tuning.options.click_options import option_words
from mimicry.tuning.options.config import TuningConfig
from tests.small_study import ANNA, listing
from tests.tuning.quick_studio import QuickStudio


def write_file(studio: QuickStudio, text: str, study: str = "") -> None:
    studio.tree.study_file.write_text(
        f'[study]\nstack = "{studio.stack}"\npush_to_hub = false\n{study}'
        f'[recipe]\npretrained_model_name_or_path = "{studio.base_model}"\nresolution = 64\nrank = 1\n{text}'
    )


def plan(studio: QuickStudio, *words: str) -> dict[str, Any]:
    """Return the plan of a call without options but those of the file and `words`."""
    ended = studio.tune_bare(f"--data-root={studio.tree.data_root}", "--dry-run", "--json", *words)
    assert (ended.code, ended.err) == (0, "")
    found: dict[str, Any] = json.loads(ended.out)
    return found


def test_the_plan_of_the_file_is_that_of_the_same_options(quick_studio: QuickStudio) -> None:
    typed = json.loads(quick_studio.tune("--dry-run", "--json").out)
    write_file(quick_studio, "")

    assert plan(quick_studio) == typed | {"study_file": str(quick_studio.tree.study_file)}


def test_a_variant_has_its_recipe_and_its_folder(quick_studio: QuickStudio) -> None:
    write_file(quick_studio, "[variants.rank-2]\nrank = 2\n")

    target = plan(quick_studio, "--variant=rank-2")["cells"][0]

    assert f"{quick_studio.stack.name}@rank-2/none__none/" in target["output_dir"]
    wanted = option_words(
        TuningConfig(pretrained_model_name_or_path=str(quick_studio.base_model), resolution=64, rank=2)
    )
    assert [word for word in target["command"] if word in wanted] == wanted


CONDITIONS = 'protections = ["none", "mist"]\ncountermeasures = ["none", "noisy_upscaling"]\n'


def cells(studio: QuickStudio, *words: str) -> list[tuple[str, str]]:
    """Return condition and artist of each target, in the order of the training."""
    return [
        (f"{one['protection']}__{one['countermeasure']}", one["artist"])
        for one in plan(studio, *words)["cells"]
    ]


def test_the_conditions_of_the_file_need_not_all_have_images(quick_studio: QuickStudio) -> None:
    write_file(quick_studio, "", study=CONDITIONS)
    all_of_anna = [("none__none", ANNA.name), ("mist__none", ANNA.name), ("mist__noisy_upscaling", ANNA.name)]

    assert cells(quick_studio, "--artist=Anna_Berg") == all_of_anna
    assert cells(quick_studio, "--artist=Anna_Berg", "--protection=mist") == all_of_anna[1:]
    words = ("--protection=none", "--countermeasure=noisy_upscaling")
    assert quick_studio.tune("--dry-run", *words).code == 2


@pytest.mark.parametrize("order", ["artist", "condition"])
def test_the_order_of_the_file(order: str, quick_studio: QuickStudio) -> None:
    write_file(quick_studio, "", study=f'{CONDITIONS}order = "{order}"\nstyles = ["baroque"]\n')

    found = cells(quick_studio)

    assert len(found) == 6
    assert len({cell[0] for cell in found[:2]}) == (2 if order == "artist" else 1)


def test_a_study_with_a_file_trains_and_is_complete(quick_studio: QuickStudio) -> None:
    write_file(quick_studio, "")
    words = [f"--data-root={quick_studio.tree.data_root}", "--artist=Anna_Berg"]

    assert quick_studio.tune_bare(*words).out.splitlines()[-1] == "1 trained"
    assert quick_studio.tune_bare(*words, "--rank=1").out.splitlines()[-1] == "1 skipped"


def test_a_contradiction_is_refused_and_nothing_is_written(quick_studio: QuickStudio) -> None:
    write_file(quick_studio, "")
    before = listing(quick_studio.folder)

    ended = quick_studio.tune("--rank=2")

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: --rank is 2, but {quick_studio.tree.study_file} has 1 in [recipe]")
    assert listing(quick_studio.folder) == before
    assert quick_studio.tune("--rank=2", "--study=none", "--dry-run").code == 0
    assert quick_studio.tune("--rank=2", "--variant=beside", "--dry-run").code == 0


def test_a_file_that_was_changed_is_what_continues_the_study(quick_studio: QuickStudio) -> None:
    write_file(quick_studio, "")
    words = [f"--data-root={quick_studio.tree.data_root}"]
    quick_studio.tune_bare(*words, "--artist=Anna_Berg")
    file = quick_studio.tree.study_file
    file.write_text(file.read_text().replace("rank = 1", "rank = 2"))

    said = quick_studio.tune_bare(*words).err

    assert f"after writing these values into {file}: --rank 1" in said
    (command,) = [line for line in said.splitlines() if "to continue the study: " in line]
    assert "--rank" not in command
    assert "[variants.NAME]" in said


def test_other_commands_take_what_they_know_of_the_file(quick_studio: QuickStudio) -> None:
    write_file(quick_studio, "")
    words = [f"--data-root={quick_studio.tree.data_root}"]
    quick_studio.tune_bare(*words, "--artist=Anna_Berg")

    said = quick_studio.verify().out
    assert "1 complete" in said
    quick_studio.tree.study_file.write_text("[recipe]\nranc = 1\n")
    ended = quick_studio.verify()
    assert (ended.code, ended.out) == (2, "")
    assert "[recipe] ranc: there is no such key; did you mean 'rank'" in ended.err
