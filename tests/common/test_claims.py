"""Claims: one process for a folder; taken over when that is gone, and not before."""

import errno
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mimicry.common import claims
from mimicry.common.claims import CLAIM, SILENT_SECONDS, Claim, claimed_by
from mimicry.common.errors import ClaimedElsewhere, ClaimLost, MimicryError
from mimicry.common.processes import process_start

ELSEWHERE = "another-machine 0000"
NEGATIVE = '{"holders": [{"pid": -1, "started": "1"}]}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "adapter of an artist"


def write_claim(folder: Path, age_seconds: float = 0.0, **changes: Any) -> None:
    """Write the claim of another process, with a last heartbeat of this age."""
    content = {"token": "theirs", "host": claims.this_host(), "since": "2026-01-01T00:00:00+00:00"}
    holders = [{"pid": os.getppid(), "started": process_start(os.getppid())}]
    folder.mkdir(exist_ok=True)
    (folder / CLAIM).write_text(json.dumps({**content, "holders": holders, **changes}))
    then = time.time() - age_seconds
    os.utime(folder / CLAIM, (then, then))


def ended_pid() -> int:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        pass
    return process.pid


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestTaking:
    def test_it_is_a_file_that_is_removed_with_it(self, folder: Path) -> None:
        with Claim.take(folder):
            content = json.loads((folder / CLAIM).read_text())
            assert content["holders"] == [{"pid": os.getpid(), "started": process_start(os.getpid())}]
            assert f"pid {os.getpid()} on " in claimed_by(folder)
            assert names(folder) == [CLAIM]
        assert not folder.exists()
        assert claimed_by(folder) == ""

    def test_a_second_one_is_refused_and_names_the_holder(self, folder: Path) -> None:
        with Claim.take(folder):
            with pytest.raises(ClaimedElsewhere, match=f"in use by pid {os.getpid()} on"):
                Claim.take(folder)
            assert names(folder) == [CLAIM]

    def test_it_ends_with_an_error_too(self, folder: Path) -> None:
        with pytest.raises(KeyError), Claim.take(folder):
            raise KeyError
        assert not folder.exists()

    def test_a_folder_that_cannot_be_created_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(MimicryError, match=r"file/artist cannot be claimed"):
            Claim.take(tmp_path / "file" / "artist")

    def test_a_file_system_without_locks_is_reported_at_once(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("mimicry.common.claims.fcntl.flock", refuse)
        with pytest.raises(MimicryError, match="cannot be claimed: No locks available"):
            Claim.take(folder)
        assert not folder.exists()

    def test_only_one_of_many_processes_gets_it(self, folder: Path) -> None:
        code = (
            "import sys, time\n"
            "from pathlib import Path\n"
            "from mimicry.common.claims import Claim\n"
            "from mimicry.common.errors import ClaimedElsewhere\n"
            "try:\n"
            "    Claim.take(Path(sys.argv[1]))\n"
            "except ClaimedElsewhere:\n"
            "    print('no', flush=True)\n"
            "else:\n"
            "    print('mine', flush=True)\n"
            "sys.stdin.read()\n"
        )
        # A dead claim is in the way: all of them want to take it over.
        write_claim(folder, holders=[{"pid": ended_pid(), "started": "1"}])
        words = [sys.executable, "-c", code, str(folder)]
        racers = [
            subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(6)
        ]
        try:
            said = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
        finally:
            for racer in racers:
                racer.kill()
                racer.communicate()
        assert sorted(said) == ["mine", *["no"] * 5]
        # They were killed, and the file that they left must not block anybody.
        with Claim.take(folder):
            assert names(folder) == [CLAIM]


class TestFolder:
    """Folders that were created for a claim are removed with it if they are empty; no others are."""

    def test_new_parent_folders_are_removed_too(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        with Claim.take(tmp_path / "mine" / "style" / "artist"):
            pass
        assert names(tmp_path) == ["mine"]
        assert names(tmp_path / "mine") == []

    def test_folders_of_others_stay(self, folder: Path) -> None:
        folder.mkdir()
        with Claim.take(folder):
            pass
        assert names(folder) == []

    def test_folders_with_new_files_stay(self, tmp_path: Path) -> None:
        with Claim.take(tmp_path / "style" / "artist"):
            (tmp_path / "style" / "artist" / "train.log").write_text("")
        assert names(tmp_path / "style" / "artist") == ["train.log"]
        with Claim.take(tmp_path / "new" / "artist"):
            (tmp_path / "new" / "another").mkdir()
        assert names(tmp_path / "new") == ["another"]

    def test_new_folders_are_removed_when_it_cannot_be_taken(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("mimicry.common.claims.os.link", refuse)
        with pytest.raises(MimicryError, match="No space left"):
            Claim.take(folder / "artist")
        assert not folder.exists()

    def test_a_folder_that_is_removed_meanwhile_is_created_again(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        link = os.link
        removals: list[Path] = []

        def removed_first(source: Path, place: Path) -> None:
            if len(removals) < 3:
                removals.append(source)
                source.unlink()
                folder.rmdir()
            link(source, place)

        monkeypatch.setattr("mimicry.common.claims.os.link", removed_first)
        with Claim.take(folder):
            assert names(folder) == [CLAIM]
        assert len(removals) == 3

    def test_a_dangling_link_is_not_a_folder(self, folder: Path) -> None:
        folder.symlink_to("nowhere")
        with pytest.raises(MimicryError, match="cannot be claimed: No such file"):
            Claim.take(folder)

    def test_many_claims_that_come_and_go_do_not_disturb_each_other(self, tmp_path: Path) -> None:
        artists = [tmp_path / "split" / "style" / str(number) for number in range(4)]

        def come_and_go(artist: Path) -> None:
            for _ in range(50):
                with Claim.take_anew(artist):
                    assert names(artist) == [CLAIM]

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(come_and_go, artists))
        # A folder above stays when who made it was not the last to leave.
        assert [artist for artist in artists if artist.exists()] == []


class TestTakingOver:
    def test_a_holder_that_has_ended(self, folder: Path) -> None:
        write_claim(folder, holders=[{"pid": ended_pid(), "started": "1"}])
        (folder / ".claim-leftover").write_text("")
        assert claimed_by(folder) == ""
        with Claim.take(folder):
            assert names(folder) == [CLAIM]

    def test_a_pid_that_belongs_to_another_process_by_now(self, folder: Path) -> None:
        write_claim(folder, holders=[{"pid": os.getppid(), "started": "1"}])
        with Claim.take(folder):
            pass

    def test_a_living_holder_keeps_it_without_a_heartbeat(self, folder: Path) -> None:
        write_claim(folder, age_seconds=100 * SILENT_SECONDS)
        with pytest.raises(ClaimedElsewhere):
            Claim.take(folder)

    def test_one_of_several_holders_is_enough(self, folder: Path) -> None:
        alive = {"pid": os.getppid(), "started": process_start(os.getppid())}
        write_claim(folder, holders=[{"pid": ended_pid(), "started": "1"}, alive])
        with pytest.raises(ClaimedElsewhere, match=f"pid {os.getppid()}"):
            Claim.take(folder)

    def test_a_silent_holder_on_another_machine_has_ended(self, folder: Path) -> None:
        write_claim(folder, age_seconds=SILENT_SECONDS - 30, host=ELSEWHERE)
        with pytest.raises(ClaimedElsewhere, match="on another-machine since"):
            Claim.take(folder)
        write_claim(folder, age_seconds=SILENT_SECONDS + 30, host=ELSEWHERE)
        with Claim.take(folder):
            pass

    def test_our_clock_does_not_matter(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_claim(folder, host=ELSEWHERE)
        tomorrow = time.time() + 86400
        monkeypatch.setattr(time, "time", lambda: tomorrow)
        with pytest.raises(ClaimedElsewhere):
            Claim.take(folder)

    @pytest.mark.parametrize(
        "content", ["", "[]", '{"holders": 3}', '{"holders": [{"pid": "x"}]}', NEGATIVE, "{"]
    )
    def test_a_file_that_is_not_a_claim_has_no_holder(self, content: str, folder: Path) -> None:
        folder.mkdir()
        (folder / CLAIM).write_text(content)
        with Claim.take(folder):
            pass


class TestHolding:
    def test_a_child_that_joined_keeps_it_when_the_parent_releases_it(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parent = Claim.take_anew(folder)
        assert not parent.has_others()
        code = (
            "import sys\n"
            "from pathlib import Path\n"
            "from mimicry.common.claims import Claim\n"
            "with Claim.take(Path(sys.argv[1])) as claim:\n"
            "    claim.check()\n"
            "    print('joined', flush=True)\n"
            "    sys.stdin.read()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            env=os.environ | parent.variable(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"joined\n"
            parent.release()
            with pytest.raises(ClaimedElsewhere, match=f"pid {child.pid}"):
                Claim.take(folder)
        assert names(folder) == []

    def test_a_child_that_joined_holds_it_until_it_ends(self, folder: Path) -> None:
        code = (
            "import sys, time\n"
            "from pathlib import Path\n"
            "from mimicry.common.claims import Claim\n"
            "Claim.take(Path(sys.argv[1])).release()\n"
            "print('released', flush=True)\n"
            "sys.stdin.read()\n"
        )
        with (
            Claim.take_anew(folder) as claim,
            subprocess.Popen(
                [sys.executable, "-c", code, str(folder)],
                env=os.environ | claim.variable(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as child,
        ):
            assert child.stdout is not None
            assert child.stdin is not None
            assert child.stdout.readline() == b"released\n"
            assert claim.has_others()
            child.stdin.close()
            child.wait(20)
            assert not claim.has_others()
        assert not folder.exists()

    def test_a_claim_for_another_folder_is_not_joined(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Claim.take(folder) as claim:
            monkeypatch.setenv(*claim.variable().popitem())
            with Claim.take(tmp_path / "another"):
                assert names(tmp_path / "another") == [CLAIM]

    def test_a_lost_claim_is_noticed_and_left_alone(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        claim = Claim.take(folder)
        claim.check()
        write_claim(folder)
        with pytest.raises(ClaimLost, match="is another's: in use by pid"):
            claim.check()
        with pytest.raises(ClaimLost), claim.fenced():
            pytest.fail("the body was run")
        monkeypatch.setenv(*claim.variable().popitem())
        with pytest.raises(ClaimLost):
            Claim.take(folder)
        claim.release()
        assert json.loads((folder / CLAIM).read_text())["token"] == "theirs"

    def test_a_removed_claim_is_lost(self, folder: Path) -> None:
        claim = Claim.take(folder)
        (folder / CLAIM).unlink()
        with pytest.raises(ClaimLost, match="was removed"):
            claim.check()
        claim.release()

    def test_nobody_takes_it_over_while_it_is_fenced(self, folder: Path) -> None:
        code = (
            "import sys\n"
            "from pathlib import Path\n"
            "from mimicry.common import claims\n"
            "claims.SILENT_SECONDS = -1.0\n"
            "claims.this_host = lambda: 'elsewhere'\n"
            "print('ready', flush=True)\n"
            "claims.Claim.take(Path(sys.argv[1]))\n"
            "print('mine', flush=True)\n"
        )
        with Claim.take(folder) as claim:
            words = [sys.executable, "-c", code, str(folder)]
            with subprocess.Popen(words, stdout=subprocess.PIPE) as taker:
                assert taker.stdout is not None
                with claim.fenced():
                    assert taker.stdout.readline() == b"ready\n"
                    time.sleep(0.2)
                    assert taker.poll() is None
                    claim.check()
                assert taker.stdout.readline() == b"mine\n"
            with pytest.raises(ClaimLost):
                claim.check()

    def test_it_has_a_heartbeat(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
        with Claim.take(folder):
            os.utime(folder / CLAIM, (0, 0))
            deadline = time.monotonic() + 20
            while (folder / CLAIM).stat().st_mtime == 0 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert (folder / CLAIM).stat().st_mtime > 0
