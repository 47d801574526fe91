"""Images with captions, and class images, for tests of runs with more than one prompt."""

import json
import shutil
from pathlib import Path

from tests.tuning.hf_diffusers.studio import Studio

CLASS_COUNT = 3


def write_captioned(studio: Studio, folder: Path) -> tuple[Path, dict[str, str]]:
    """Copy the studio's images and caption all but the last; return their folder, and captions by stem."""
    shutil.copytree(studio.images, folder)
    paths = sorted(folder.iterdir())[:-1]
    captions = {path.stem: f"number {number}, oil on canvas" for number, path in enumerate(paths)}
    for path in paths[1:]:
        path.with_suffix(".txt").write_text(captions[path.stem] + "\n")
    line = {"file_name": paths[0].name, "text": captions[paths[0].stem]}
    (folder / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    return folder, captions


def write_class_images(studio: Studio, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Fill a folder with a user's own class images; return it, and flags that train on them."""
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted(studio.mist.iterdir())[:CLASS_COUNT]):
        shutil.copyfile(path, folder / f"own {number}{path.suffix}")
    return folder, class_flags(folder, CLASS_COUNT)


def class_flags(folder: Path, count: int) -> tuple[str, ...]:
    return (
        "--with_prior_preservation",
        *(f"--class_data_dir={folder}", "--class_prompt=a painting", f"--num_class_images={count}"),
    )
