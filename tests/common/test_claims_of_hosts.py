"""Claims of machines that share a file system whose locks do not reach from one to the other."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from mimicry.common.claims import CLAIM, SILENT_SECONDS

_FOLDERS = 60
# A process on a machine of its own, for which no lock of the others exists.
_HOST = """
import sys, time
from pathlib import Path
from mimicry.common import claims
from mimicry.common.errors import ClaimedElsewhere
host, begin = sys.argv[1], float(sys.argv[2])
claims.this_host = lambda: host
claims.fcntl.flock = lambda *_: None
time.sleep(max(0, begin - time.time()))
for name in sys.argv[3:]:
    try:
        claim = claims.Claim.take(Path(name))
    except ClaimedElsewhere:
        continue
    print(name, flush=True)
print(flush=True)
sys.stdin.read()
"""


def dead_claim(folder: Path) -> None:
    """Leave the claim of a machine that has been silent for too long."""
    folder.mkdir()
    content = {"token": "theirs", "host": "gone", "since": "2026-01-01T00:00:00+00:00"}
    (folder / CLAIM).write_text(json.dumps({**content, "holders": [{"pid": 1, "started": "1"}]}))
    then = time.time() - SILENT_SECONDS - 60
    os.utime(folder / CLAIM, (then, then))


def test_one_of_several_machines_takes_over_what_a_dead_one_had(tmp_path: Path) -> None:
    folders = [tmp_path / f"artist_{number}" for number in range(_FOLDERS)]
    for folder in folders:
        dead_claim(folder)
    begin = str(time.time() + 1.5)
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", _HOST, f"node{number}", begin, *map(str, folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    taken: list[str] = []
    for host in hosts:
        assert host.stdout is not None
        while name := host.stdout.readline().strip():
            taken.append(name)
    owners = [json.loads((folder / CLAIM).read_text())["host"] for folder in folders]
    for host in hosts:
        host.communicate()
    assert sorted(taken) == sorted(map(str, folders))
    assert len(set(owners)) > 1, "one of them was alone"
