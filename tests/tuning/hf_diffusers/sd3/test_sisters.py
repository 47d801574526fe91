"""The trainer and the adapters of the same artist under other conditions: a warning, or a refusal."""

import json
from pathlib import Path

import pytest

from mimicry.common.errors import TrainingFailed
from tests.tuning.hf_diffusers.sd3.parts import make_args, make_trainer, train
from tests.tuning.hf_diffusers.sd3.resuming import WEIGHTS, names
from tests.tuning.hf_diffusers.studio import Studio, training_run

ARTIST = Path("historical", "baroque", "Casimir_Drovanti")
STRICT = "--require_same_numerics"


@pytest.fixture
def mist(studio: Studio, tmp_path: Path) -> Path:
    """Where the adapter for mist goes, beside one on the original art that another torch has trained."""
    sister = tmp_path / "none__none" / ARTIST
    train(studio, sister)
    assert training_run(sister)["other_numerics"] == {}
    return tmp_path / "mist__none" / ARTIST


def pretend(mist: Path, torch: str) -> None:
    path = mist.parents[3] / "none__none" / ARTIST / "training_run.json"
    run = json.loads(path.read_text())
    run["numerics"]["torch"] = torch
    path.write_text(json.dumps(run))


def test_other_numerics_are_warned_of_or_refused(
    mist: Path, studio: Studio, capsys: pytest.CaptureFixture[str]
) -> None:
    train(studio, mist, STRICT, images=studio.mist)
    assert training_run(mist)["warnings"] == []
    pretend(mist, "1.0")
    weights = (mist / WEIGHTS).read_bytes()
    phrase = "other numerics than none__none (torch '1.0' -> '"

    with pytest.raises(TrainingFailed, match="and --require-same-numerics is given; train this one as"):
        train(studio, mist, STRICT, images=studio.mist)
    # One that is complete keeps its record.
    assert (mist / WEIGHTS).read_bytes() == weights
    assert training_run(mist)["status"] == "complete"
    (mist / WEIGHTS).unlink()
    with pytest.raises(TrainingFailed, match="--require-same-numerics"):
        train(studio, mist, STRICT, images=studio.mist)
    run = training_run(mist)
    assert run["status"] == "blocked"
    assert run["error"].startswith(phrase)
    assert WEIGHTS not in names(mist)

    train(studio, mist, images=studio.mist)
    run = training_run(mist)
    assert run["status"] == "complete"
    assert run["warnings"][0].startswith(phrase)
    assert list(run["other_numerics"]) == ["none__none"]
    assert f"warning: {phrase}" in capsys.readouterr().out


def test_another_recipe_is_no_sister(mist: Path, studio: Studio) -> None:
    pretend(mist, "1.0")
    trainer = make_trainer(studio, mist, STRICT, "--rank=2")
    assert trainer.config == make_args(studio, mist, STRICT, "--rank=2").config
    assert training_run(mist)["other_numerics"] == {}
