"""Uploads that are still pending are found and made, by `mimicry upload` and by the next call."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.claims import Claim, claimed_by
from mimicry.common.errors import UploadFailed
from mimicry.study.tree import Artist
from mimicry.tuning.adapters.folder import WEIGHTS
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from mimicry.tuning.hub.upload import Upload, Uploaded
from tests.fake_hub import Answer, FakeHub
from tests.small_study import (
    ANNA,
    BORIS,
    CLARA,
    DORA,
    EVERYBODY,
    ORIGINAL,
    listing,
    original,
    output_dir,
    write_images,
)
from tests.tuning.quick_studio import QuickStudio

OWED = {"owed": "x", "error": "the Hub is away"}


class Hub:
    """Stands in for the upload of one adapter; refuses those artists that are in `refused`."""

    def __init__(self) -> None:
        self.jobs: list[Upload] = []
        self.refused: dict[str, str] = {}
        self.meanwhile: Callable[[Upload], object] = lambda job: None

    def __call__(self, job: Upload) -> Uploaded:
        self.jobs.append(job)
        self.meanwhile(job)
        if job.artist in self.refused:
            raise UploadFailed(f"{job.repository} was not uploaded: {self.refused[job.artist]}")
        repository_id = f"{job.namespace or 'lab'}/{job.repository}"
        return Uploaded(repository_id=repository_id, url=f"https://hub/{repository_id}", commit="c" * 40)

    @property
    def uploaded(self) -> list[str]:
        return [job.artist for job in self.jobs]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr("mimicry.tuning.hub.upload.upload_adapter", hub)
    monkeypatch.setattr("mimicry.tuning.orchestrator.hub_problems", lambda jobs: [])
    return hub


@pytest.fixture
def trained(quick_studio: QuickStudio, monkeypatch: pytest.MonkeyPatch) -> QuickStudio:
    """A study whose artists are trained, and none uploaded."""
    assert quick_studio.tune().code == 0
    for artist in EVERYBODY:
        note(quick_studio, artist)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    return quick_studio


def output(studio: QuickStudio, artist: Artist) -> Path:
    return output_dir(studio.tree, ORIGINAL, artist, studio.stack.name)


def note(studio: QuickStudio, artist: Artist, **fields: Any) -> None:
    """Write a training_run.json for the weights that are there, with `fields` in it."""
    weights = hashlib.sha256((output(studio, artist) / WEIGHTS).read_bytes()).hexdigest()
    (output(studio, artist) / TRAINING_RUN).write_text(json.dumps({"weights": {"sha256": weights}} | fields))


def record(studio: QuickStudio, artist: Artist) -> dict[str, Any]:
    hub: dict[str, Any] = json.loads((output(studio, artist) / TRAINING_RUN).read_text()).get("hub", {})
    return hub


def mark(studio: QuickStudio, artist: Artist) -> dict[str, Any]:
    document = json.loads(studio.tree.tracker.read_text())
    bookmarks: dict[str, Any] = document["bookmarks"]["step_3_fine_tune_sd35"]
    mark: dict[str, Any] = bookmarks[f"{studio.stack.name}/none/none/{artist}"]
    return mark


class TestUpload:
    def test_everything_complete_goes_up_once(self, trained: QuickStudio, hub: Hub) -> None:
        note(trained, ANNA, hub=OWED)
        calls = trained.trained()

        ended = trained.upload()

        assert (ended.code, ended.err) == (0, "")
        assert ended.out.splitlines()[-1] == "4 uploaded, 0 owed"
        assert hub.uploaded == [artist.name for artist in EVERYBODY]
        assert trained.trained() == calls
        assert record(trained, ANNA)["repository_id"] == "lab/sd35-lora-none-none-Anna_Berg"
        assert mark(trained, ANNA)["hub"]["commit"] == "c" * 40
        assert {job.split for job in hub.jobs} == {"historical", "contemporary"}
        # Whose token it is was asked for the first one only.
        assert [job.namespace for job in hub.jobs] == [None, "lab", "lab", "lab"]

    def test_what_is_there_stays_and_filters_hold(self, trained: QuickStudio, hub: Hub) -> None:
        note(trained, ANNA, hub={"repository_id": "lab/SD35-lora-none-none-Anna_Berg", "commit": "a"})

        ended = trained.upload("--style=baroque")

        assert hub.uploaded == [BORIS.name]
        assert "uploaded to lab/SD35-lora-none-none-Anna_Berg" in ended.out
        assert trained.upload("--style=baroque").code == 0
        assert hub.uploaded == [BORIS.name]

    def test_another_namespace_is_another_place(self, trained: QuickStudio, hub: Hub) -> None:
        note(trained, ANNA, hub={"repository_id": "lab/sd35-lora-none-none-Anna_Berg", "commit": "a"})

        trained.upload("--artist=Anna_Berg", "--hub-namespace=lab")
        assert hub.uploaded == []
        ended = trained.upload("--artist=Anna_Berg", "--hub-namespace=institute")
        assert "upload  uploaded to lab/sd35-lora-none-none-Anna_Berg only" in ended.out
        assert hub.uploaded == [ANNA.name]
        assert record(trained, ANNA)["repository_id"] == "institute/sd35-lora-none-none-Anna_Berg"

    def test_a_dry_run_asks_nobody_and_writes_nothing(
        self, trained: QuickStudio, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("HF_TOKEN")
        note(trained, ANNA, hub=OWED)
        before = listing(trained.folder)

        ended = trained.upload("--dry-run", "--style=baroque")

        assert (ended.code, ended.err) == (0, "")
        header, anna, boris, counts = ended.out.splitlines()
        assert header.split() == ["condition", "artist", "repository", "state", "reason"]
        assert anna.split(maxsplit=3) == [
            "none__none",
            str(ANNA),
            "sd35-lora-none-none-Anna_Berg",
            "upload  owed: the Hub is away",
        ]
        assert boris.endswith("never uploaded")
        assert counts == "2 to upload, 0 to leave"
        assert hub.jobs == []
        assert listing(trained.folder) == before

    def test_stale_and_blocked_ones_go_up_and_broken_and_foreign_ones_do_not(
        self, trained: QuickStudio, hub: Hub
    ) -> None:
        note(trained, ANNA, images=[{"name": "gone.png", "size": 1, "sha256": "0"}])
        for path in original(trained.tree, BORIS).iterdir():
            path.unlink()
        (output(trained, CLARA) / WEIGHTS).write_bytes(b"torn")
        (output(trained, DORA) / TRAINING_RUN).unlink()

        ended = trained.upload()

        assert ended.code == 0
        assert hub.uploaded == [ANNA.name, BORIS.name]
        assert "it has no training_run.json" in ended.out
        [clara] = [line for line in ended.out.splitlines() if "Clara" in line]
        assert re.search(r"leave +broken: .*not a readable safetensors file", clara)

    def test_failures_that_are_alike_end_it(self, trained: QuickStudio, hub: Hub) -> None:
        hub.refused = dict.fromkeys((artist.name for artist in EVERYBODY), "no network")

        ended = trained.upload()

        assert ended.code == 1
        assert ended.out.splitlines()[-1] == "0 uploaded, 4 owed"
        assert hub.uploaded == [artist.name for artist in EVERYBODY[:3]]
        assert "no network" in record(trained, ANNA)["error"]
        assert mark(trained, ANNA)["hub"]["owed"] == "sd35-lora-none-none-Anna_Berg"
        assert mark(trained, ANNA)["status"] == "complete"
        hub.refused.clear()
        assert trained.upload().code == 0

    def test_failures_that_differ_do_not(self, trained: QuickStudio, hub: Hub) -> None:
        hub.refused = {artist.name: f"reason {number}" for number, artist in enumerate(EVERYBODY[:3])}

        assert trained.upload().out.splitlines()[-1] == "1 uploaded, 3 owed"

    def test_one_that_another_call_works_on_is_left_to_it(self, trained: QuickStudio, hub: Hub) -> None:
        before = mark(trained, ANNA)
        with Claim.take_anew(output(trained, ANNA)):
            ended = trained.upload("--style=baroque")

        assert ended.code == 1
        assert f"Anna_Berg is in use by pid {os.getpid()}" in ended.out
        assert ended.out.splitlines()[-1] == "1 uploaded, 1 owed"
        assert hub.uploaded == [BORIS.name]
        assert (record(trained, ANNA), mark(trained, ANNA)) == ({}, before)
        assert trained.upload("--style=baroque").code == 0

    def test_nobody_else_works_on_one_that_goes_up(
        self, trained: QuickStudio, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        holders: list[str] = []

        def upload(job: Upload) -> Uploaded:
            holders.append(claimed_by(job.folder))
            return hub(job)

        monkeypatch.setattr("mimicry.tuning.hub.upload.upload_adapter", upload)

        assert trained.upload("--artist=Anna_Berg").code == 0
        assert f"pid {os.getpid()} " in holders[0]
        assert claimed_by(output(trained, ANNA)) == ""

    @pytest.mark.parametrize("how", ["uploaded", "trained", "set aside"])
    def test_what_another_call_did_meanwhile_is_seen(self, trained: QuickStudio, hub: Hub, how: str) -> None:
        def meanwhile(job: Upload) -> None:
            if job.artist != ANNA.name:
                return
            weights = output(trained, BORIS) / WEIGHTS
            if how == "uploaded":
                place = "lab/sd35-lora-none-none-Boris_Cole"
                note(trained, BORIS, hub={"repository_id": place, "commit": "a"})
            elif how == "trained":
                weights.write_bytes(weights.read_bytes())
            else:
                weights.unlink()

        hub.meanwhile = meanwhile

        ended = trained.upload("--style=baroque")

        assert hub.uploaded == [ANNA.name]
        if how == "uploaded":
            assert (ended.code, ended.out.splitlines()[-1]) == (0, "2 uploaded, 0 owed")
            assert mark(trained, BORIS)["hub"]["commit"] == "a"
        else:
            assert (ended.code, ended.out.splitlines()[-1]) == (1, "1 uploaded, 1 owed")
            assert "was changed by another call; type the same command again" in ended.out

    def test_a_folder_that_cannot_be_written_keeps_its_debt(
        self, trained: QuickStudio, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("mimicry.common.claims.os.link", refuse)

        ended = trained.upload("--artist=Anna_Berg")

        assert ended.code == 1
        assert "Anna_Berg cannot be claimed: Permission denied" in ended.out
        assert hub.jobs == []

    @pytest.mark.parametrize("word", ["--no-push-to-hub", "--overwrite", "--json", "--verbose"])
    def test_what_makes_no_sense_with_it(self, trained: QuickStudio, hub: Hub, word: str) -> None:
        ended = trained.upload(word)

        assert ended.code == 2
        assert "No such option" in ended.err and word in ended.err
        assert hub.jobs == []

    def test_without_a_token(self, trained: QuickStudio, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN")

        ended = trained.upload()

        assert ended.code == 2
        assert "HF_TOKEN is not set" in ended.err

    def test_two_artists_of_one_name(self, trained: QuickStudio, hub: Hub) -> None:
        twin = Artist("historical", "cubism", "ANNA_BERG")
        write_images(original(trained.tree, twin))
        assert trained.tune(f"--artist={twin.name}").code == 0
        note(trained, twin)

        ended = trained.upload()

        assert ended.code == 2
        assert "would be uploaded to one repository" in ended.err
        assert hub.jobs == []


class TestNextCall:
    def test_pays_what_is_owed_before_it_trains(self, trained: QuickStudio, hub: Hub) -> None:
        note(trained, ANNA, hub=OWED)
        note(trained, BORIS, hub={"repository_id": "lab/sd35-lora-none-none-Boris_Cole", "commit": "a"})
        (output(trained, CLARA) / WEIGHTS).unlink()

        ended = trained.tune("--push-to-hub", "--split=historical")

        assert (ended.code, ended.err) == (0, "")
        assert hub.uploaded == [ANNA.name]
        assert trained.trained()[-1] == CLARA.name
        assert ended.out.index("Anna_Berg: uploaded to") < ended.out.index("Clara_Dunn: training")
        assert ended.out.splitlines()[-1] == "1 trained, 1 uploaded, 1 skipped"

    def test_one_that_stays_owed_is_no_good_end(self, trained: QuickStudio, hub: Hub) -> None:
        hub.refused[ANNA.name] = "no network"

        ended = trained.tune("--push-to-hub", "--artist=Anna_Berg")

        assert ended.code == 1
        assert ended.out.splitlines()[-1] == "1 owed"
        assert "upload owed: sd35-lora-none-none-Anna_Berg was not uploaded: no network" in ended.out

    def test_of_a_stale_one_only_a_debt_is_paid(self, trained: QuickStudio, hub: Hub) -> None:
        stale = [{"name": "gone.png", "size": 1, "sha256": "0"}]
        note(trained, ANNA, images=stale)
        note(trained, BORIS, images=stale, hub=OWED)

        assert trained.tune("--push-to-hub", "--style=baroque").code == 3
        assert hub.uploaded == [BORIS.name]

    def test_without_uploads_nothing_goes_up(self, trained: QuickStudio, hub: Hub) -> None:
        note(trained, ANNA, hub=OWED)

        assert trained.tune().code == 0
        assert hub.jobs == []


def test_a_refusal_of_the_hub_comes_before_training(quick_studio: QuickStudio, fake_hub: FakeHub) -> None:
    fake_hub.faults["whoami"] = Answer({"error": "Invalid username or password."}, 401)
    before = listing(quick_studio.folder)

    ended = quick_studio.tune("--push-to-hub")

    assert (ended.code, ended.out) == (2, "")
    assert "wrong, revoked or expired" in ended.err
    assert quick_studio.trained() == []
    assert listing(quick_studio.folder) == before


@pytest.mark.parametrize(
    ("word", "words"),
    [("--hub-namespace=Musée", "without accents"), ("--base-model-id=/home/x", "it must be owner/name")],
)
def test_options_that_are_no_names_are_refused(quick_studio: QuickStudio, word: str, words: str) -> None:
    ended = quick_studio.tune(word)

    assert ended.code == 2
    assert words in ended.err
