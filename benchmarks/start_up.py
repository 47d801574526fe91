"""Measure how long apply_tuning takes before it trains: --help, and --dry-run over many artists, of
original and of protected art, and over the conditions of a whole study.

    .venv/bin/python -m benchmarks.start_up [--artists 1000] [--images 20] [--output FILE]

Makes trees of small files in temporary folders and reports the median of several runs in seconds, and the
peak memory of all of them, after one that is not counted.
"""

import argparse
import os
import sys
import tempfile
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.full_study import CONDITIONS, image_root, made_up_artists
from benchmarks.timed_run import median_times
from mimicry.study.tree import StudyTree
from tools.results_file import add_output_option, report

# Of the whole study.
_ARTISTS = 26
_PROGRAM = (sys.executable, "-m", "mimicry.tuning.apply_tuning")


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
        figures: dict[str, float] = {}
        what = f"apply_tuning --dry-run, {options.artists} artists of {options.images} images"
        for name, words in (
            ("apply_tuning --help", ["--help"]),
            (what, dry_run),
            (f"{what}, protected", [*dry_run, "--protection", "mist"]),
        ):
            figures |= median_times(name, [*_PROGRAM, *words], options.runs)
    with tempfile.TemporaryDirectory() as folder:
        data_root = Path(folder) / "style_mimicry"
        _make_matrix(StudyTree(data_root), options.images)
        words = ["--dry-run", "--data-root", str(data_root), "--no-push-to-hub", "--replicates", "3"]
        words += ["--protection", "all", "--countermeasure", "all"]
        name = f"apply_tuning --dry-run, 546 cells of {options.images} images with 3 replicates"
        figures |= median_times(name, [*_PROGRAM, *words], options.runs)
    report("start_up", figures, options.output, runs=options.runs, load_average_before=load)


def _make_matrix(tree: StudyTree, images: int) -> None:
    """Write 26 artists in 21 conditions; images of one condition are a byte longer than those of another."""
    for artist in made_up_artists(_ARTISTS):
        for mark, condition in enumerate(CONDITIONS):
            folder = tree.images_of(image_root(tree, condition), artist)
            folder.mkdir(parents=True)
            for image in range(images):
                (folder / f"{image:02}.png").write_bytes(_contents()[".png"] + bytes(mark))


def _make_tree(tree: StudyTree, artists: int, images: int) -> None:
    """Write originals as JPEG with EXIF data, and protected images as PNG; all are the same picture."""
    contents = _contents()
    for artist in made_up_artists(artists):
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


if __name__ == "__main__":
    main()
