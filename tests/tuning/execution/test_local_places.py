"""Which places there are for trainings, and what a training in each of them sees."""

import pytest

from mimicry.common.environment import processor_count
from mimicry.common.errors import UsageError
from mimicry.tuning.execution.local import Place, choose_places
from tests.fake_gpus import FakeGpus


def gpus_of(places: tuple[Place, ...]) -> list[tuple[str, ...] | None]:
    return [place.gpus for place in places]


@pytest.mark.parametrize("asked", [None, "all"])
def test_by_default_each_gpu_is_a_place(asked: str | None, fake_gpus: FakeGpus) -> None:
    fake_gpus.count(3)
    assert gpus_of(choose_places(asked)) == [("0",), ("1",), ("2",)]


@pytest.mark.parametrize(
    ("asked", "parallel", "processes", "groups"),
    [
        ("0,2", 1, 1, [("0",), ("2",)]),
        (" GPU-0003 , 1", 1, 1, [("3",), ("1",)]),
        ("0,2", 2, 1, [("0",), ("2",), ("0",), ("2",)]),
        ("all", 1, 2, [("0", "1"), ("2", "3")]),
        ("3,1,0", 1, 2, [("3", "1")]),
        (None, 1, 4, [("0", "1", "2", "3")]),
        ("none", 2, 1, [(), ()]),
    ],
)
def test_gpus_may_be_chosen_shared_and_grouped(
    asked: str | None,
    parallel: int,
    processes: int,
    groups: list[tuple[str, ...]],
    fake_gpus: FakeGpus,
) -> None:
    fake_gpus.count(4)
    assert gpus_of(choose_places(asked, parallel, processes)) == groups


def test_without_gpus_a_training_sees_what_this_program_sees(fake_gpus: FakeGpus) -> None:
    (place,) = choose_places(None)
    assert place == Place()
    assert place.variables({}) == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert place.variables({"OMP_WAIT_POLICY": "ACTIVE"}) == {}


def test_processors_are_divided_unless_threads_are_set(fake_gpus: FakeGpus) -> None:
    places = choose_places(None, parallel=2)
    share = max(1, processor_count() // 2)
    assert [place.variables({})["OMP_NUM_THREADS"] for place in places] == [str(share)] * 2
    assert "OMP_NUM_THREADS" not in places[0].variables({"OMP_NUM_THREADS": "1"})
    assert choose_places(None, parallel=64)[0].threads == max(1, processor_count() // 64)


def test_gpus_that_the_environment_names_are_the_ones_to_choose_from(
    fake_gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpus.count(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,MIG-x")
    assert gpus_of(choose_places(None)) == [("3",), ("MIG-x",)]
    assert gpus_of(choose_places("MIG-x")) == [("MIG-x",)]
    with pytest.raises(UsageError, match=r"'0' is not .*: 3, MIG-x \(CUDA_VISIBLE_DEVICES=3,MIG-x\)"):
        choose_places("0")


@pytest.mark.parametrize(
    ("asked", "processes", "problem"),
    [
        ("0,7", 1, "'7' is not a GPU that this program may use; these are: 0, 1"),
        ("", 1, "'' is not a GPU"),
        ("x\ny", 1, r"'x\\ny' is not a GPU"),
        ("1,GPU-0001", 1, "names a GPU twice"),
        ("all", 3, "--num-processes 3 takes 3 GPUs for each training, and there are 2: 0, 1; type"),
        ("1", 2, "and there is 1: 1; type --num-processes 1"),
    ],
)
def test_gpus_that_cannot_be_had_are_refused(
    asked: str, processes: int, problem: str, fake_gpus: FakeGpus
) -> None:
    fake_gpus.count(2)
    with pytest.raises(UsageError) as refused:
        choose_places(asked, 1, processes)
    assert problem.replace("\\\\", "\\") in str(refused.value)


def test_all_of_no_gpus_are_refused(fake_gpus: FakeGpus) -> None:
    with pytest.raises(UsageError, match="no GPU was found here"):
        choose_places("all")


def test_a_device_that_the_user_has_named_is_left_alone(
    fake_gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpus.count(2)
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda:1")
    assert gpus_of(choose_places(None)) == [None]
    with pytest.raises(UsageError, match="ACCELERATE_TORCH_DEVICE=cuda:1 names the device already"):
        choose_places("all")
