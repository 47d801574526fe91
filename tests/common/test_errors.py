import errno

import pytest

from mimicry.common.errors import (
    AdapterBroken,
    BatchFault,
    ClaimedElsewhere,
    ClaimLost,
    MimicryError,
    TrainingFailed,
    UploadFailed,
    UsageError,
    disk_fault,
    nearest,
    report,
    run_reporting_errors,
)

EXIT_CODES = {
    MimicryError: 1,
    UsageError: 2,
    BatchFault: 2,
    AdapterBroken: 1,
    TrainingFailed: 1,
    ClaimedElsewhere: 1,
    ClaimLost: 1,
    UploadFailed: 1,
}


@pytest.mark.parametrize(("kind", "exit_code"), EXIT_CODES.items())
def test_report_prints_every_problem_and_returns_the_exit_code(
    kind: type[MimicryError], exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(kind("first problem", "second problem")) == exit_code
    printed = capsys.readouterr()
    assert printed.err == "error: first problem\nerror: second problem\n"
    assert printed.out == ""


def test_an_error_reads_as_all_its_problems() -> None:
    error = UsageError("first problem", "second problem")
    assert error.problems == ("first problem", "second problem")
    assert str(error) == "first problem\nsecond problem"


def test_run_reporting_errors_passes_on_the_exit_code_of_the_program() -> None:
    assert run_reporting_errors(lambda: 7) == 7


def test_run_reporting_errors_turns_an_error_into_its_message_and_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def program() -> int:
        raise BatchFault("no disk left")

    assert run_reporting_errors(program) == 2
    assert capsys.readouterr().err == "error: no disk left\n"


def test_run_reporting_errors_does_not_hide_a_defect() -> None:
    def program() -> int:
        raise KeyError("a defect of ours")

    with pytest.raises(KeyError):
        run_reporting_errors(program)


def test_nearest_names_the_likely_ones_first() -> None:
    assert nearest("glace", ["mist", "glaze", "style_guard"]) == "did you mean 'glaze'?"
    assert nearest("Monet", ["Monet_Claude", "Monet_1"]) == "did you mean 'Monet_1' or 'Monet_Claude'?"


def test_nearest_lists_all_names_when_none_is_near() -> None:
    assert nearest("xyz", ["mist", "glaze"]) == "available: glaze, mist"
    assert nearest("xyz", []) == "none is available"


def test_nearest_cuts_a_long_list_short() -> None:
    phrase = nearest("xyz", [f"artist_{number:02d}" for number in range(30)])
    assert "artist_11" in phrase
    assert "artist_12" not in phrase
    assert phrase.endswith(", ...")


class TestDiskFault:
    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (OSError(errno.ENOSPC, "", "/data/x"), "the disk of /data/x is full"),
            (OSError(errno.EDQUOT, ""), "the disk has no room left for you"),
            (OSError(errno.EROFS, "", "/data"), "the disk of /data is read-only"),
            (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        ],
    )
    def test_says_which_disk_and_what_to_do(self, error: Exception, words: str) -> None:
        assert disk_fault(error).startswith(f"{words}; see `df -h`, make room, and type the same command")

    def test_other_errors_are_not_disk_faults(self) -> None:
        assert disk_fault(OSError(errno.ENOENT, "")) == disk_fault(KeyError("x")) == ""

    def test_a_program_ends_with_a_message(self, capsys: pytest.CaptureFixture[str]) -> None:
        def fill() -> int:
            raise OSError(errno.ENOSPC, "", "/data")

        assert run_reporting_errors(fill) == 1
        assert capsys.readouterr().err.startswith("error: the disk of /data is full")

    def test_other_faults_of_the_system_are_not_hidden(self) -> None:
        def fail() -> int:
            raise OSError(errno.EIO, "")

        with pytest.raises(OSError, match=str(errno.EIO)):
            run_reporting_errors(fail)
