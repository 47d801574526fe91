"""The program apply_tuning before it trains: options, plans, refusals."""

import json
import shlex
from pathlib import Path

import pytest

from mimicry.study.tree import Artist
from mimicry.tuning.options.click_options import option_words
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from mimicry.tuning.stacks import Stack
from tests.fake_hub import FakeHub
from tests.small_study import (
    ANNA,
    CLARA,
    DORA,
    EVERYBODY,
    listing,
    write_images,
)
from tests.tuning.quick_studio import (
    QuickStudio,
    run_by_path,
)

# From anywhere, by path


def test_help_by_path_from_another_folder_names_every_option(tmp_path: Path) -> None:
    done = run_by_path(["--help"], tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    others = (
        "data-root stack protection countermeasure split style artist pilot overwrite dry-run json verbose "
        "push-to-hub no-push-to-hub hub-namespace base-model-id min-samples-per-artist allow-unpaired "
        "train-script stall-minutes quarantine-unpaired help"
    )
    for flag in [*(f"--{name}" for name in others.split()), *(option.flag for option in OPTIONS)]:
        assert flag in done.stdout


def test_a_whole_call_by_path_from_another_folder(quick_studio: QuickStudio, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    words = ["--data-root=../study", "--stack=../quick", *quick_studio.words("--pilot")[2:]]

    done = run_by_path(words, elsewhere)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "3 trained"
    assert quick_studio.trained() == [DORA.name, ANNA.name, CLARA.name]
    assert list(elsewhere.iterdir()) == []
    assert run_by_path(words, elsewhere).stdout.splitlines()[-1] == "3 skipped"


def test_a_base_model_that_is_nowhere_is_refused_without_a_network(quick_studio: QuickStudio) -> None:
    before = listing(quick_studio.folder)
    words = ["--data-root=study", "--pretrained-model-name-or-path=lab/no-such-model", "--no-push-to-hub"]

    done = run_by_path(
        words, quick_studio.folder, HF_HUB_OFFLINE="1", HF_HOME=str(quick_studio.folder / "hf")
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: base model lab/no-such-model is not in the cache")
    assert listing(quick_studio.folder) == before


# The plan


def test_a_dry_run_writes_nothing_and_needs_no_token(quick_studio: QuickStudio) -> None:
    before = listing(quick_studio.folder)

    ended = quick_studio.tune("--dry-run", "--push-to-hub", "--overwrite")

    assert ended.code == 0
    first_words = [line.split()[0] for line in ended.out.splitlines()]
    assert first_words == ["artist", *map(str, EVERYBODY), "evaluation", "4"]
    assert ended.err.startswith("warning: the training would be refused: HF_TOKEN is not set")
    assert listing(quick_studio.folder) == before


def test_verbose_shows_the_words_that_the_stack_gives(quick_studio: QuickStudio) -> None:
    ended = quick_studio.tune(
        "--dry-run", "-v", "--stack=hf_diffusers", "--artist=Anna_Berg", "--instance-prompt=a 'sks' cat"
    )

    table, _, shown = ended.out.partition("\n1 train\n")
    assert "Anna_Berg" in table
    config = TuningConfig(
        pretrained_model_name_or_path=str(quick_studio.base_model),
        resolution=64,
        rank=1,
        instance_prompt="a 'sks' cat",
    )
    words = [*option_words(config), "--stall-minutes=30", "--no-push-to-hub"]
    assert shlex.split(shown) == Stack.find("hf_diffusers").words(
        quick_studio.tree.original_art / str(ANNA),
        quick_studio.tree.data_root / "models/lora/hf_diffusers/none__none" / str(ANNA),
        [
            *words,
            f"--eval-data-dir={quick_studio.tree.original_art / str(ANNA)}",
            "--note=3 images; the defaults are meant for 20",
        ],
    )


def test_without_uploads_a_command_says_nothing_of_the_hub(quick_studio: QuickStudio) -> None:
    words = ("--hub-namespace=lab", "--base-model-id=a/b", "--artist=Anna_Berg")

    (target,) = json.loads(quick_studio.tune("--dry-run", "--json", *words).out)["cells"]

    assert target["repository"] is None
    assert [word for word in target["command"] if "hub" in word or "base-model-id" in word] == [
        "--no-push-to-hub"
    ]


def test_json_is_the_plan_and_nothing_else(quick_studio: QuickStudio) -> None:
    hostile = Artist("historical", "cubism", "\udcff; {x}\n")
    write_images(quick_studio.tree.images_of(quick_studio.tree.original_art, hostile))
    before = listing(quick_studio.folder)

    ended = quick_studio.tune("--dry-run", "--json", "--push-to-hub", "--style=cubism")

    plan = json.loads(ended.out)
    assert (ended.code, ended.err) == (0, "")
    assert plan["counts"] == {
        "train": 3,
        "complete": 0,
        "stale": 0,
        "claimed": 0,
        "queued": 0,
        "blocked": 0,
        "no data": 0,
    }
    assert [target["artist"] for target in plan["cells"]] == [DORA.name, CLARA.name, hostile.name]
    assert plan["cells"][1]["repository"] == "sd35-lora-none-none-Clara_Dunn"
    assert f"--hub-model-id={plan['cells'][2]['repository']}" in plan["cells"][2]["command"]
    assert listing(quick_studio.folder) == before


def test_json_goes_with_a_dry_run_only(quick_studio: QuickStudio) -> None:
    ended = quick_studio.tune("--json")

    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: --json shows a plan and goes with --dry-run alone; type --dry-run --json\n"
    assert quick_studio.trained() == []


# Refusals: exit code 2, and nothing written


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (
            ["--artist=Ana_Berg", "--style=cubizm", "--split=historic"],
            ["--artist Ana_Berg matches no artist; did you mean 'Anna_Berg'", "'cubism'", "'historical'"],
        ),
        (
            ["--protection=misst", "--countermeasure=noise_upscaling"],
            ["--protection misst: no such name", "'mist'", "'noisy_upscaling'"],
        ),
        (["--protection=glaze"], ["there is no art protected by glaze", "beside it there is: mist"]),
        (["--countermeasure=noisy_upscaling"], ["has no folder of that name", "mist"]),
        (["--protection=../original_art"], ["it takes the name of a folder"]),
        (["--stack=hf_difusers"], ["--stack hf_difusers", "did you mean 'hf_diffusers'?"]),
        (["--stack=./nowhere"], ["there is no nowhere/runner_config.json"]),
        (["--data-root=nowhere"], ["there is no original art: nowhere/original_art is not a folder"]),
        (
            ["--rank=0", "--learning-rate=fast", "--mixed-precision=fp8", "--max-train-steps=-1"],
            [
                "--rank is 0; it takes at least 1",
                "--learning-rate is 'fast'; it takes a number",
                "--mixed-precision is 'fp8'; choose one of no, fp16, bf16",
                "--max-train-steps is -1",
            ],
        ),
        (
            ["--rank=0", "--stack=hf_difusers", "--protection=misst", "--data-root=nowhere"],
            ["--rank is 0", "--stack hf_difusers", "--protection misst"],
        ),
        (["--resolution=100"], ["--resolution 100", "takes multiples of 8 up to", "type --resolution 96"]),
        (["--pretrained-model-name-or-path=./gone"], ["./gone: there is no such folder"]),
        (["--push-to-hub"], ["HF_TOKEN is not set", "--no-push-to-hub"]),
        (
            ["--push-to-hub", "--resolution=100", "--pretrained-model-name-or-path=./gone"],
            ["HF_TOKEN is not set", "./gone: there is no such folder"],
        ),
        (["--stall-minutes=0"], ["--stall-minutes"]),
        (["--min-samples-per-artist=0"], ["--min-samples-per-artist"]),
        (["--train-script=gone.py"], ["gone.py"]),
        (
            ["--train-script=lab.py", "--hold-out=1", "--source-resolution=64"],
            ["--hold-out 1: lab.py cannot be told so", "--source-resolution 64: lab.py cannot be told so"],
        ),
        (["--hold-out=-1", "--source-resolution=8"], ["--hold-out is -1", "--source-resolution is 8"]),
        (["--artits=Anna_Berg"], ["No such option", "--artist"]),
        (["Anna_Berg"], ["Anna_Berg"]),
    ],
    ids=lambda value: " ".join(value) if str(value[0]).startswith("-") else "",
)
def test_what_is_wrong_is_refused_before_anything_is_written(
    words: list[str], messages: list[str], quick_studio: QuickStudio
) -> None:
    before = listing(quick_studio.folder)

    ended = quick_studio.tune(*words)

    assert (ended.code, ended.out) == (2, "")
    assert [message for message in messages if message not in ended.err] == []
    assert "Traceback" not in ended.err
    assert listing(quick_studio.folder) == before


def test_the_suggested_resolution_is_taken(quick_studio: QuickStudio) -> None:
    suggestion = quick_studio.tune("--resolution=100").err.rpartition("type ")[2].strip()

    assert quick_studio.tune(*suggestion.split(), "--artist=Anna_Berg").code == 0


def test_two_artists_of_one_repository_are_refused_when_both_are_uploaded(
    quick_studio: QuickStudio, fake_hub: FakeHub
) -> None:
    write_images(
        quick_studio.tree.images_of(
            quick_studio.tree.original_art, Artist("historical", "cubism", "anna_berg")
        )
    )
    before = listing(quick_studio.folder)

    ended = quick_studio.tune("--push-to-hub")

    assert ended.code == 2
    assert "'historical/baroque/Anna_Berg' and 'historical/cubism/anna_berg'" in ended.err
    assert listing(quick_studio.folder) == before
    assert quick_studio.tune("--no-push-to-hub").code == 0
