import os
import subprocess
import sys
from pathlib import Path

import pytest

import mimicry
from mimicry.common.environment import (
    hub_token,
    load_environment,
    processor_count,
    sees_gpu,
    typed_device,
    typed_threads,
    versions,
    without_launcher,
)
from mimicry.common.errors import UsageError


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first, so that monkeypatch also takes away what .env sets later.
    for name in ("HF_TOKEN", "STUDY_VALUE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("PYTHON_DOTENV_DISABLED", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)


def test_nearest_dotenv_upwards_is_loaded(tmp_path: Path) -> None:
    below = tmp_path / "study" / "code"
    below.mkdir(parents=True)
    (tmp_path / ".env").write_text("STUDY_VALUE=far\n")
    (tmp_path / "study" / ".env").write_text("# a comment\nSTUDY_VALUE='near by'\n")
    load_environment(below)
    assert os.environ["STUDY_VALUE"] == "near by"


def test_working_directory_is_the_default_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("HF_TOKEN=from_the_file\n")
    monkeypatch.chdir(tmp_path)
    load_environment()
    assert hub_token() == "from_the_file"


def test_variables_that_are_set_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("HF_TOKEN=from_the_file\nSTUDY_VALUE=from_the_file\n")
    monkeypatch.setenv("HF_TOKEN", "from_the_shell")
    load_environment(tmp_path)
    assert hub_token() == "from_the_shell"
    assert os.environ["STUDY_VALUE"] == "from_the_file"


def test_a_folder_named_dotenv_is_ignored(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("STUDY_VALUE=above\n")
    (tmp_path / "study" / ".env").mkdir(parents=True)
    load_environment(tmp_path / "study")
    assert os.environ["STUDY_VALUE"] == "above"


def test_unreadable_dotenv_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"HF_TOKEN=\xff\xfe\n")
    with pytest.raises(UsageError) as caught:
        load_environment(tmp_path)
    assert str(tmp_path / ".env") in str(caught.value)


@pytest.mark.parametrize("value", ["", "  ", "\n"])
def test_a_blank_token_is_not_a_token(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", value)
    assert hub_token() is None


def test_token_is_stripped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", " abc\n")
    assert hub_token() == "abc"


def test_only_processors_that_we_may_use_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 9}, raising=False)
    assert processor_count() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert processor_count() == 64


@pytest.mark.parametrize(("asked", "count"), [("2", 2), ("64", 4), ("0", 4), ("many", 4), ("", 4)])
def test_a_job_of_slurm_has_no_more_than_it_asked_for(
    asked: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", asked)
    assert processor_count() == count


def test_what_a_launcher_has_set_is_left_out_and_named() -> None:
    around = {
        "WORLD_SIZE": "4",
        "RANK": "1",
        "MASTER_ADDR": "node\n1",
        "TORCHELASTIC_RUN_ID": "x",
        "OMPI_COMM_WORLD_SIZE": "4",
        "ACCELERATE_USE_DEEPSPEED": "true",
    }
    own = {"PATH": "/bin", "OMP_NUM_THREADS": "3", "SLURM_JOB_ID": "7", "ACCELERATE_TORCH_DEVICE": "cuda:1"}

    kept, line = without_launcher({**around, **own})

    assert kept == own
    assert "\n" not in line
    assert line.endswith(
        "ACCELERATE_USE_DEEPSPEED=true, MASTER_ADDR=node\\n1, OMPI_COMM_WORLD_SIZE=4, RANK=1, "
        "TORCHELASTIC_RUN_ID=x, WORLD_SIZE=4"
    )
    assert without_launcher(own) == (own, "")


@pytest.mark.parametrize("hidden", ["", "-1", " "])
def test_hidden_gpus_are_none(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not sees_gpu()


@pytest.mark.parametrize(
    ("typed", "threads"), [("3", 3), ("", None), ("0", None), ("-1", None), ("many", None)]
)
def test_a_number_of_threads_counts_from_one(typed: str, threads: int | None) -> None:
    assert typed_threads({"OMP_NUM_THREADS": typed}) == threads
    assert typed_threads({}) is None


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("ACCELERATE_TORCH_DEVICE", "cpu", "ACCELERATE_TORCH_DEVICE=cpu"),
        ("ACCELERATE_TORCH_DEVICE", "", ""),
        ("ACCELERATE_USE_CPU", "True", "ACCELERATE_USE_CPU=True"),
        ("ACCELERATE_USE_CPU", "false", ""),
    ],
)
def test_a_device_that_is_named(
    variable: str, value: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACCELERATE_TORCH_DEVICE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    assert typed_device() == named


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", str(root), *who, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


class TestVersions:
    def test_of_libraries(self) -> None:
        found = versions(mimicry)
        assert found["python"] == ".".join(map(str, sys.version_info[:3]))
        assert found["mimicry"] == mimicry.__version__
        for library in ("torch", "diffusers", "transformers", "peft", "accelerate"):
            assert isinstance(found[library], str)

    def test_of_a_checkout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = tmp_path / "mimicry"
        package.mkdir()
        (package / "__init__.py").write_text("")
        monkeypatch.setattr(mimicry, "__file__", str(package / "__init__.py"))
        no_checkout = versions(mimicry)
        assert (no_checkout["git_commit"], no_checkout["git_dirty"]) == (None, None)
        git(tmp_path, "init", "--quiet")
        no_commit = versions(mimicry)
        assert (no_commit["git_commit"], no_commit["git_dirty"]) == (None, None)
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "--quiet", "--message=first")
        (tmp_path / "notes").write_text("untracked files change nothing that is imported")
        clean = versions(mimicry)
        assert (clean["git_commit"], clean["git_dirty"]) == (git(tmp_path, "rev-parse", "HEAD"), False)
        (package / "__init__.py").write_text("# changed")
        assert versions(mimicry)["git_dirty"] is True
