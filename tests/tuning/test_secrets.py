"""The whole chain with a token that everybody tries to give away, and a machine that nobody may hear of."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mimicry.common.errors import UsageError, report
from mimicry.study.tree import StudyTree
from mimicry.tuning.hf_diffusers.spec.trainer_args import parse_args
from tests.fake_hub import TOKEN, Answer, FakeHub
from tests.small_study import ANNA, write_images
from tests.tuning.hf_diffusers.stand_in import write_stand_in
from tests.tuning.hf_diffusers.studio import DEADLINE_SECONDS, TRAINER, environment, run
from tests.tuning.quick_studio import PROGRAM

NAME = "sd35-lora-none-none-Anna_Berg"
USER = "jane_of_the_lab"


@dataclass
class Watcher:
    """The arguments of every process that names the study, looked at again and again."""

    study: Path
    seen: set[bytes] = field(default_factory=set)
    _ended: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    words = path.read_bytes()
                except OSError:
                    continue
                if os.fsencode(self.study) in words or b"mimicry.tuning.hub." in words:
                    self.seen.add(words)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes in /proc")
def test_neither_token_nor_machine_is_told(demo_dir: Path, tmp_path: Path) -> None:
    home = tmp_path / USER
    tree = StudyTree(home / "a study")
    write_images(tree.images_of(tree.original_art, ANNA))
    script = write_stand_in(tmp_path)
    with script.open("a") as file:
        file.write("print('a library says', os.environ['HF_TOKEN'], file=sys.stderr)\n")
    words = [
        sys.executable,
        str(PROGRAM),
        f"--data-root={tree.data_root}",
        f"--pretrained-model-name-or-path={demo_dir / 'tiny_sd3'}",
        f"--train-script={script}",
        *("--resolution=64", "--rank=4", "--max-train-steps=2"),
    ]
    upload = [sys.executable, "-m", "mimicry.cli", "upload", f"--data-root={tree.data_root}"]
    people = {"HOME": str(home), "USER": USER, "LOGNAME": USER, "XDG_CACHE_HOME": str(home / "cache")}
    said, watcher = "", Watcher(tree.data_root)
    with FakeHub() as hub, watcher.watching():
        hub.faults["commit"] = Answer({"error": f"{TOKEN} of {USER} may only read"}, 403)
        for command, code in ((words, 1), (upload, 0)):
            done = subprocess.run(
                command,
                cwd=home,
                env=environment(**people, **hub.environment(), HF_HOME=str(home / "hf_home")),
                capture_output=True,
                text=True,
                timeout=DEADLINE_SECONDS,
            )
            said += done.stdout + done.stderr
            assert done.returncode == code, said
            hub.faults.clear()
        uploaded = hub.repositories[f"lab/{NAME}"]

    assert "hf_*** of" in said
    assert f"{NAME} was not uploaded: the token in HF_TOKEN may not write" in said
    assert "1 uploaded, 0 owed" in said
    written = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert {"train.log", "training_run.json", "progress_tracker.json"} <= {path.name for path in written}
    assert [path for path, content in written.items() if TOKEN.encode() in content] == []
    assert TOKEN not in said
    # apply_tuning, wrapper, launcher, script, and the children that talk to the Hub.
    assert len(watcher.seen) >= 5
    assert [words for words in watcher.seen if TOKEN.encode() in words] == []

    sent = [request.body for request in hub.requests] + [request.path.encode() for request in hub.requests]
    sent += list(uploaded.files.values())
    # Headers hold the token, and must.
    sent += [
        line.encode()
        for request in hub.requests
        for line in request.headers.splitlines()
        if not line.lower().startswith("authorization: ")
    ]
    assert b"Anna_Berg" in b"".join(sent)
    told = [os.fsencode(tree.data_root), str(demo_dir).encode(), USER.encode(), TOKEN.encode()]
    told += [socket.gethostname().encode(), b"a study", str(tmp_path).encode()]
    assert [secret for secret in told if any(secret in part for part in sent)] == []


def test_a_base_model_that_is_refused_with_the_token_in_the_message(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    with FakeHub() as hub:
        hub.faults["info"] = Answer({"error": f"{TOKEN} may not"}, 403, {"X-Error-Message": f"no, {TOKEN}"})
        words = [
            *("--instance_data_dir=images", "--output_dir=out", "--mixed_precision=no"),
            "--pretrained_model_name_or_path=lab/model",
        ]
        outcome = run(
            TRAINER, words, cwd=tmp_path, env=environment(**hub.environment(), HF_HOME=str(tmp_path / "hf"))
        )

    said = outcome.stdout + outcome.stderr
    assert outcome.returncode == 2, said
    assert "base model lab/model cannot be had from the Hub" in said
    assert TOKEN not in said
    assert "hf_***" in said


def test_a_token_given_as_a_flag_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UsageError) as caught:
        parse_args([f"--hub_token={TOKEN}", "--hub_token", TOKEN, TOKEN])

    report(caught.value)
    said = capsys.readouterr().err
    assert "--hub_token is not a flag of this trainer" in said
    assert TOKEN not in said
