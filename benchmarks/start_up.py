"""Measure how long apply_tuning takes before it trains: --help, and --dry-run over many artists, of
original and of protected art, and over the conditions of a whole study.

    .venv/bin/python -m benchmarks.start_up [--artists 1000] [--images 20] [--output FILE]

Makes a tree of small files in a temporary folder and reports the median of several runs in seconds, and the
peak memory of all of them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from mimicry.study.tree import COUNTERMEASURES, PROTECTIONS, Artist, StudyTree
from tools.results_file import add_output_option, report

_STYLES = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artists", type=int, default=1000)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    add_output_option(parser)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        data_root = Path(folder) / "style_mimicry"
        _make_tree(StudyTree(data_root), options.artists, options.images)
        dry_run = ["--dry-run", "--data-root", str(data_root), "--no-push-to-hub"]
        figures = {}
        what = f"apply_tuning --dry-run, {options.artists} artists of {options.images} images"
        for name, words in (
            ("apply_tuning --help", ["--help"]),
            (what, dry_run),
            (f"{what}, protected", [*dry_run, "--protection", "mist"]),
        ):
            seconds, cpu_seconds, peak_bytes = _measure(words, options.runs)
            figures[f"{name} [s]"] = seconds
            figures[f"{name}, of which computing [s]"] = cpu_seconds
            figures[f"{name}, peak memory [MB]"] = peak_bytes / 1e6
    with tempfile.TemporaryDirectory() as folder:
        data_root = Path(folder) / "style_mimicry"
        _make_matrix(StudyTree(data_root), options.images)
        words = ["--dry-run", "--data-root", str(data_root), "--no-push-to-hub", "--replicates", "3"]
        words += ["--protection", "all", "--countermeasure", "all"]
        seconds, cpu_seconds, _ = _measure(words, options.runs)
        name = f"apply_tuning --dry-run, 546 cells of {options.images} images with 3 replicates"
        figures |= {f"{name} [s]": seconds, f"{name}, of which computing [s]": cpu_seconds}
    report("start_up", figures, options.output, runs=options.runs, load_average_before=load)


def _make_matrix(tree: StudyTree, images: int) -> None:
    """Write 26 artists in 21 conditions; images of one condition are a byte longer than those of another."""
    roots = [tree.original_art, *(tree.protected_art / name for name in PROTECTIONS)]
    roots += [tree.robust_samples / name / other for name in COUNTERMEASURES for other in PROTECTIONS]
    for number in range(26):
        artist = Artist("historical", f"style_{number % _STYLES}", f"artist_{number:05}")
        for mark, root in enumerate(roots):
            folder = tree.images_of(root, artist)
            folder.mkdir(parents=True)
            for image in range(images):
                (folder / f"{image:02}.png").write_bytes(_contents()[".png"] + bytes(mark))


def _make_tree(tree: StudyTree, artists: int, images: int) -> None:
    """Write originals as JPEG with EXIF data, and protected images as PNG; all are the same picture."""
    contents = _contents()
    for number in range(artists):
        artist = Artist("historical", f"style_{number % _STYLES}", f"artist_{number:05}")
        for root, suffix in ((tree.original_art, ".jpg"), (tree.protected_art / "mist", ".png")):
            folder = tree.images_of(root, artist)
            folder.mkdir(parents=True)
            for image in range(images):
                (folder / f"{image:02}{suffix}").write_bytes(contents[suffix])


@cache
def _contents() -> dict[str, bytes]:
    picture, exif = Image.new("RGB", (96, 72), "teal"), Image.Exif()
    exif[0x010E] = "a painting"
    contents: dict[str, bytes] = {}
    settings: dict[str, Any]
    for suffix, settings in ((".jpg", {"exif": exif}), (".png", {})):
        file = BytesIO()
        picture.save(file, Image.registered_extensions()[suffix], **settings)
        contents[suffix] = file.getvalue()
    return contents


def _measure(words: list[str], runs: int) -> tuple[float, float, int]:
    """Return the medians of wall seconds and CPU seconds, and the peak memory in bytes."""
    times, cpu_times, peaks = [], [], []
    for _ in range(runs):
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "mimicry.tuning.apply_tuning", *words], stdout=subprocess.DEVNULL
        )
        # Unlike wait(), this returns the resources that the process used.
        _, status, usage = os.wait4(process.pid, 0)
        times.append(time.perf_counter() - begin)
        cpu_times.append(usage.ru_utime + usage.ru_stime)
        peaks.append(usage.ru_maxrss * 1024)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"exit code {process.returncode}")
    return statistics.median(times), statistics.median(cpu_times), max(peaks)


if __name__ == "__main__":
    main()
