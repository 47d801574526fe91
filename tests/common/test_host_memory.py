"""What of the machine's memory may be used: half of what is free, here or in a control group."""

from pathlib import Path

import pytest
from mimicry.common.hardware import free_host_bytes, group_free_bytes, host_memory_problem

from mimicry.common import hardware

GIB = 1 << 30


def test_half_of_what_is_free_may_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_host_bytes", lambda: 8 * GIB)
    assert host_memory_problem(0) is None
    assert host_memory_problem(4 * GIB) is None
    assert host_memory_problem(5 * GIB) == "5.0 GiB, more than half of the 8.0 GiB of free host memory"


def test_this_machine_has_some() -> None:
    assert 1 << 20 < free_host_bytes() < 1 << 50


class TestControlGroups:
    def write(self, folder: Path, limit: str, used: int, *, cache: int = 0, old: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        names = ("limit_in_bytes", "usage_in_bytes") if old else ("max", "current")
        for name, value in zip(names, (limit, used), strict=True):
            (folder / f"memory.{name}").write_text(f"{value}\n")
        key = "total_inactive_file" if old else "inactive_file"
        (folder / "memory.stat").write_text(f"anon 5\n{key} {cache}\n")

    def found(self, root: Path, line: str) -> list[int]:
        (root / "membership").write_text(f"12:cpu:/x\n{line}\n")
        return list(group_free_bytes(root / "membership", root))

    def test_a_limit_anywhere_above_counts(self, tmp_path: Path) -> None:
        self.write(tmp_path / "a" / "b", "max", 70)
        self.write(tmp_path / "a", "1000", 300, cache=50)
        assert self.found(tmp_path, "0::/a/b") == [750]
        self.write(tmp_path / "a" / "b", "400", 390)
        assert self.found(tmp_path, "0::/a/b") == [10, 750]

    def test_the_older_version_too(self, tmp_path: Path) -> None:
        self.write(tmp_path / "memory" / "job", "500", 100, cache=20, old=True)
        assert self.found(tmp_path, "4:memory:/job") == [420]

    def test_one_that_is_over_its_limit_has_nothing_left(self, tmp_path: Path) -> None:
        self.write(tmp_path / "a", "100", 300)
        assert self.found(tmp_path, "0::/a") == [0]

    def test_none_is_no_fault(self, tmp_path: Path) -> None:
        assert self.found(tmp_path, "0::/gone") == []
        assert list(group_free_bytes(tmp_path / "nowhere", tmp_path)) == []
