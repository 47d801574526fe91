"""apply_tuning --engine slurm as it is typed: what is refused, what is shown, what a login node needs."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.small_study import ANNA, put_adapter
from tests.tuning.fake_slurm import FakeSlurm, FakeSubmitit, put_submission
from tests.tuning.quick_studio import QuickStudio, quick_calls

_ROOT = Path(__file__).resolve().parents[2]
_LOGIN_NODE = """
import sys
for name in sys.argv.pop(1).split():
    sys.modules[name] = None
import mimicry.tuning.apply_tuning as program
sys.exit(program.main())
"""


def of_the_nodes() -> list[str]:
    """Return the names of modules of our requirements that docs/running.md installs on no login node."""
    document = (_ROOT / "docs" / "running.md").read_text().replace("\\\n", " ")
    installed = re.findall(r"^pip install -c constraints.txt (.*)$", document, re.MULTILINE)
    required = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[<>=!\s]", line)[0].lower().replace("_", "-") for line in required}
    missing = names - {word.lower().replace("_", "-") for word in installed[0].split()}
    assert "torch" in missing
    modules = importlib.metadata.packages_distributions()
    return [
        module
        for module, distributions in modules.items()
        if missing & {name.lower().replace("_", "-") for name in distributions}
    ]


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm.install(tmp_path / "bin", monkeypatch)


def test_options_of_the_cluster_have_no_effect_here_and_are_refused(quick_studio: QuickStudio) -> None:
    ended = quick_studio.tune("--dry-run", "--slurm-partition=gpu", "--slurm-setup=module load x")
    assert ended.code == 2
    assert "--slurm-partition, --slurm-setup would have no effect without --engine slurm" in ended.err


def test_options_of_this_machine_have_no_effect_there_and_are_refused(quick_studio: QuickStudio) -> None:
    ended = quick_studio.tune("--dry-run", "--engine=slurm", "--gpus=0", "--parallel=2")
    assert ended.code == 2
    assert "--gpus, --parallel would have no effect with --engine slurm" in ended.err


def test_wrong_values_are_told_with_other_faults(quick_studio: QuickStudio) -> None:
    ended = quick_studio.tune("--engine=slurm", "--slurm-time=soon", "--slurm-mem=lots", "--protection=glas")
    assert ended.code == 2
    for words in ("--slurm-time soon", "--slurm-mem lots", "glas"):
        assert words in ended.err


def test_a_dry_run_shows_what_sbatch_gets_and_writes_nothing(
    quick_studio: QuickStudio, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeSubmitit().install(monkeypatch)
    ended = quick_studio.tune("--engine=slurm", "--dry-run")
    assert ended.code == 0
    assert "4 train" in ended.out
    assert "submitit.core._submit" in ended.out
    assert not quick_studio.tree.queue("slurm").exists()


def test_a_machine_without_slurm_is_told(quick_studio: QuickStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    put_submission(quick_studio.tree, ["a"])
    monkeypatch.setenv("PATH", "/nowhere")
    ended = quick_studio.tune("--engine=slurm", "--dry-run")
    assert ended.code == 1
    assert "there is no squeue on this machine" in ended.err


def test_what_is_queued_is_neither_submitted_nor_a_failure(
    quick_studio: QuickStudio, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitit = FakeSubmitit().install(monkeypatch)
    first = quick_studio.tune("--engine=slurm", "--no-wait")
    assert first.code == 3
    (name,) = (path.name for path in quick_studio.tree.queue("slurm").glob("mimicry-*"))
    fake_slurm.show(*(f"{name}|1|{number}|PENDING||Priority" for number in range(4)))
    second = quick_studio.tune("--engine=slurm", "--no-wait")
    assert second.code == 3
    assert "4 queued" in second.out
    assert len(submitit.submitted) == 1
    assert quick_calls(quick_studio.stack) == []


def test_a_login_node_needs_neither_torch_nor_its_family(
    quick_studio: QuickStudio, fake_slurm: FakeSlurm
) -> None:
    stand_in = quick_studio.folder / "site" / "submitit"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").write_text("")
    words = quick_studio.words("--engine=slurm", "--gradient-checkpointing", "--allow-mixed-recipes")
    words[1] = "--stack=hf_diffusers"
    # What it trains here has its values checked, as that of a job has when it has ended.
    put_adapter(quick_studio.tree, artist=ANNA)
    paths = os.pathsep.join([str(stand_in.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", _LOGIN_NODE, " ".join(of_the_nodes()), *words],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
    )
    # It comes as far as submitit, of which there is an empty one here.
    assert "3 train" in done.stdout, done.stderr
    assert "SlurmExecutor" in done.stderr
