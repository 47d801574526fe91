"""Tables and JSON: what people and programs get to see of a plan and of its end."""

import json
from pathlib import Path
from typing import Any

import pytest

from mimicry.study.tree import Artist, State, StudyTree
from mimicry.tuning.execution.bookkeeping import Result
from mimicry.tuning.hub.upload import HubOptions
from mimicry.tuning.planning.plan import WAYS_FOR_STALE, Plan
from mimicry.tuning.planning.target import Target
from mimicry.tuning.status.tables import commands, plan_json, plan_table, summary
from tests.hostile_names import HOSTILE_NAMES
from tests.shells import shell_words
from tests.small_study import (
    ANNA,
    BORIS,
    CLARA,
    DORA,
    MIST,
    asked_for,
    output_dir,
    plan_of,
    target_of,
    write_adapter,
    write_images,
)


@pytest.fixture
def plan(tree: StudyTree) -> Plan:
    """Dora is to be trained, Anna is complete, Boris stale, Clara blocked."""
    asked = asked_for().recipe
    assert asked is not None
    for artist, trainer in ((ANNA, asked["trainer"]), (BORIS, "x")):
        write_adapter(
            output_dir(tree, MIST, artist),
            tree.images_of(tree.protected_art / "mist", artist),
            recipe={**asked, "trainer": trainer},
        )
    for path in tree.images_of(tree.protected_art / "mist", CLARA).iterdir():
        path.unlink()
    return plan_of(tree, MIST, hub=HubOptions())


def result(target: Target, state: State, **fields: Any) -> Result:
    return Result(target=target, state=state, **fields)


def test_the_plan_shows_artist_images_source_state_and_reason(plan: Plan) -> None:
    header, dora, anna, boris, clara, evaluation, counts = plan_table(plan).split("\n")

    assert header.split() == ["artist", "images", "source", "state", "reason"]
    assert dora.split(maxsplit=4) == [
        str(DORA), "3", "protected_art/mist", "train", "3 images; the defaults are meant for 20",
    ]  # fmt: skip
    assert anna.split() == [str(ANNA), "3", "protected_art/mist", "complete"]
    assert boris.split(maxsplit=4)[3:] == [
        "stale",
        f"another trainer; kept: {WAYS_FOR_STALE}",
    ]
    assert clara.split(maxsplit=4)[1:4] == ["0", "protected_art/mist", "blocked"]
    assert "there is no image" in clara
    assert evaluation.startswith("evaluation loss: in-sample")
    assert counts == "1 train, 1 complete, 1 stale, 1 blocked"


def test_the_plan_for_programs_has_every_field(plan: Plan, tree: StudyTree) -> None:
    value = json.loads(json.dumps(plan_json(plan)))

    targets = value.pop("cells")
    assert value == {
        "data_root": str(tree.data_root),
        "stack": "hf_diffusers",
        "variant": None,
        "protection": "mist",
        "countermeasure": "none",
        "source": str(tree.protected_art / "mist"),
        "absent": [],
        "counts": {
            "train": 1,
            "complete": 1,
            "stale": 1,
            "claimed": 0,
            "queued": 0,
            "blocked": 1,
            "no data": 0,
        },
        "remarks": [],
    }
    assert [(target["state"], target["action"]) for target in targets] == [
        ("waiting", "train"),
        ("complete", "skip"),
        ("stale", "skip"),
        ("no data", "block"),
    ]
    assert targets[0] == {
        "key": f"hf_diffusers/mist/none/{DORA}",
        "variant": None,
        "protection": "mist",
        "countermeasure": "none",
        "split": "contemporary",
        "style": "cubism",
        "artist": "Dora_Eik",
        "images": 3,
        "held_out": [],
        "evaluation": "in-sample",
        "input_dir": str(tree.protected_art / "mist" / str(DORA)),
        "output_dir": str(tree.data_root / "models/lora/hf_diffusers/mist__none" / str(DORA)),
        **dict.fromkeys(("steps", "step_count", "checkpoint", "recipe_hash", "seed", "eval_loss")),
        **dict.fromkeys(("finished_at", "seconds", "host", "since", "upload_owed", "log", "job_log")),
        "state": "waiting",
        "reason": "",
        "action": "train",
        "action_reason": "",
        "warnings": ["3 images; the defaults are meant for 20"],
        "unpaired": [],
        "dose": None,
        "files": targets[0]["files"],
        "ignored": [],
        "repository": "sd35-lora-mist-none-Dora_Eik",
        "command": target_of(plan, DORA).command,
    }
    assert [file["width"] for file in targets[0]["files"]] == [8, 8, 8]
    assert [target["command"] for target in targets[1:]] == [None, None, None]


def test_commands_are_what_a_shell_takes(tmp_path: Path) -> None:
    tree = StudyTree(tmp_path / "a 'study'")
    for name in HOSTILE_NAMES:
        write_images(tree.images_of(tree.original_art, Artist("a", "b", name)), ["1"])
    plan = plan_of(tree)

    lines = commands(plan).splitlines()

    assert len(plan.of(State.WAITING)) == len(HOSTILE_NAMES) - 2  # two are hidden
    assert [shell_words(line) for line in lines] == [target.command for target in plan.targets]


def test_the_summary_tells_what_became_of_everyone(tree: StudyTree) -> None:
    plan = plan_of(tree)
    dora, anna, boris, clara = plan.targets
    results = [
        result(
            dora,
            State.COMPLETE,
            trained=True,
            seconds=3725.0,
            loss=0.12345,
            owed="the Hub is away",
            evaluation="eval 1.234 -> 1.201",
        ),
        result(anna, State.FAILED, seconds=61.0, error="it burned\n  the last lines"),
        result(boris, State.INTERRUPTED, seconds=1.0, error="stopped by SIGTERM"),
    ]

    header, *rows, counts = summary(plan, results).split("\n")

    assert header.split() == ["artist", "result", "time", "loss", "remark"]
    assert rows[0].split(maxsplit=4)[:4] == [str(DORA), "trained", "1:02:05", "0.1235"]
    assert "upload owed: the Hub is away; eval 1.234 -> 1.201; " in rows[0]
    assert f"log: {dora.folder.log}" in rows[0]
    assert rows[1].split()[1:4] == ["failed", "1:01", "it"]
    assert "it burned" in rows[1] and "last lines" not in rows[1]
    assert f"log: {anna.folder.log}" in rows[1]
    assert "stopped by SIGTERM" in rows[2]
    assert rows[3].split(maxsplit=2)[1:] == ["left", "not begun"]
    assert str(clara.artist) in rows[3]
    assert counts == "1 trained, 1 failed, 1 interrupted, 1 left"


def test_the_summary_says_why_others_were_not_trained(plan: Plan) -> None:
    trained = result(target_of(plan, DORA), State.COMPLETE, trained=True)

    _, dora, anna, boris, clara, counts = summary(plan, [trained]).split("\n")

    assert "trained" in dora and "the defaults are meant for 20" in dora
    assert anna.split() == [str(ANNA), "skipped", "complete"]
    assert boris.split(maxsplit=2)[1:] == [
        "skipped",
        f"stale; another trainer; kept: {WAYS_FOR_STALE}",
    ]
    assert clara.split()[1] == "blocked" and "there is no image" in clara
    assert counts == "1 trained, 2 skipped, 1 blocked"
