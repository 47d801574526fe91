"""The Hub token is neither printed, by us or by a library, nor written into a JSON file."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from mimicry.common.errors import MimicryError, report
from mimicry.common.files import write_json
from mimicry.common.tokens import mask_token, scrub, scrubbed_output

TOKEN = "odd.token"
OTHER = "hf_" + "abcdEFGH" * 4


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)


def test_scrub_removes_the_token_and_similar_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = scrub(f"Bearer {TOKEN}, then {OTHER}; hf_diffusers and hf_xet are not tokens")
    assert text == "Bearer hf_***, then hf_***; hf_diffusers and hf_xet are not tokens"
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "old.token")
    assert scrub("old.token") == "hf_***"
    monkeypatch.setenv("HF_TOKEN", "  ")
    assert scrub("a  b") == "a  b"


def test_streams_pass_on_everything_but_the_token(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with scrubbed_output():
        print("to the right:", TOKEN, flush=True)
        sys.stderr.writelines(["to the left: ", OTHER, "\n"])
        handler = logging.StreamHandler()
        handler.emit(logging.makeLogRecord({"msg": f"a library says {TOKEN}"}))
        assert sys.stdout.isatty() is False
    assert (sys.stdout, sys.stderr) == before
    said = capsys.readouterr()
    assert said.out == "to the right: hf_***\n"
    assert said.err == "to the left: hf_***\na library says hf_***\n"


def test_a_traceback_has_no_token() -> None:
    code = (
        "import os\nfrom mimicry.common.tokens import scrubbed_output\n"
        "with scrubbed_output():\n    raise OSError('refused: ' + os.environ['HF_TOKEN'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "OSError: refused: hf_***"
    assert "Traceback" in done.stderr


def test_reported_errors_and_files_have_no_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(MimicryError(f"the Hub said {TOKEN}\nand {OTHER}"))
    assert capsys.readouterr().err == "error: the Hub said hf_***\n  and hf_***\n"
    write_json(tmp_path / "x.json", {"error": f"the Hub said {TOKEN}", "name": OTHER})
    # A name that only looks like a token stays: it may be that of a folder.
    assert json.loads((tmp_path / "x.json").read_text()) == {"error": "the Hub said hf_***", "name": OTHER}


def test_a_log_is_masked_in_its_place(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    mask_token(log)
    assert not log.exists()
    log.write_bytes(f"{TOKEN}{TOKEN} \xff and {TOKEN}\n".encode("latin-1"))
    with log.open("ab", buffering=0) as other:
        mask_token(log)
        other.write(b"more\n")
    stars = "*" * len(TOKEN)
    assert log.read_bytes() == f"{stars}{stars} \xff and {stars}\nmore\n".encode("latin-1")
