"""Situations of a small study: how its cells came to be as they are, and what everybody should say of them.

Each begins with all adapters complete, unless it says otherwise. What the programs say is compared in
`test_agreement`; what becomes of the study where its user types the next command, in `test_safe_next`.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from mimicry.study.drawn_images import ClassImages
from mimicry.study.pairing import held_out
from mimicry.study.tree import AdapterId, Condition
from mimicry.tuning.options.config import TuningConfig
from tests.agreement.study import CELLS, STACK, Study, typed_words
from tests.small_study import ANNA, BORIS, CLARA, MIST, ORIGINAL, STEMS, write_images
from tests.tuning.fake_slurm import FakeSlurm, put_submission

Build = Callable[[Study], None]
SITUATIONS: dict[str, Build] = {}
UNCOUNTERED = Condition(countermeasure="noisy_upscaling")
BY_TYPED_OPTIONS = "the plan compares with the options that are typed, and not with the other adapters"


def situation(build: Build) -> Build:
    """Add what fills a new study, whose adapters are all complete."""

    def filled(study: Study) -> None:
        study.put_all()
        build(study)

    SITUATIONS[build.__name__.replace("_", " ")] = filled
    return build


def bare_situation(build: Build) -> Build:
    """Add what fills a new study that has images and nothing else."""
    SITUATIONS[build.__name__.replace("_", " ")] = build
    return build


# Complete


@situation
def all_complete(study: Study) -> None:
    study.expect("complete", action="skip", steps=60, seed=42)


@situation
def images_of_a_complete_adapter_gone(study: Study) -> None:
    shutil.rmtree(study.images(MIST, ANNA))
    study.expect("complete", "images are not there", MIST)


@situation
def made_by_another_tool(study: Study) -> None:
    study.output().record.unlink()
    study.expect("complete", "another tool")


@situation
def an_artist_only_in_adapters(study: Study) -> None:
    write_images(study.images(ORIGINAL, CLARA))
    study.put_adapter(ORIGINAL, CLARA)
    shutil.rmtree(study.images(ORIGINAL, CLARA))
    study.expect("complete", "images are not there", ORIGINAL, CLARA)
    study.expect("no data", "", MIST, CLARA)


@situation
def a_painting_in_quarantine(study: Study) -> None:
    for condition in (ORIGINAL, MIST):
        folder = study.images(condition)
        content = (folder / "02_boat.png").read_bytes()
        (folder / "02_boat.png").unlink()
        study.put_adapter(condition)
        (folder / "02_boat.png").write_bytes(content)
    study.tree.quarantine.parent.mkdir(exist_ok=True)
    study.tree.quarantine.write_text(json.dumps({"images": {str(ANNA): {"02_boat": {}}}}))
    study.expect("complete")


@situation
def a_painting_held_out(study: Study) -> None:
    hold_out(study, 1)
    study.typed.append("--hold-out=1")
    study.asked[None] = replace(study.config, hold_out=1)
    study.expect("complete")


def hold_out(study: Study, count: int) -> None:
    """Write adapters of all cells that held paintings out of their training."""
    for condition, artist in CELLS:
        config = replace(study.config, hold_out=count)
        images = study.record(condition, artist)["images"]
        stems = held_out([image["stem"] for image in images], count)
        kept = [image for image in images if image["stem"] not in stems]
        if kept:
            study.put_adapter(condition, artist, config, images=kept, held_out=list(stems))


# Stale


@situation
def one_image_more(study: Study) -> None:
    write_images(study.images(), ["04_road"])
    write_images(study.images(MIST), ["04_road"])
    study.expect("stale", "new '04_road.png'", action="skip")
    study.expect("stale", "new '04_road.png'", MIST)


@situation
def one_image_less(study: Study) -> None:
    for condition in (ORIGINAL, MIST):
        (study.images(condition) / "02_boat.png").unlink()
        study.expect("stale", "gone '02_boat.png'", condition)


@situation
def an_image_changed_with_the_same_size_and_time(study: Study) -> None:
    path = study.images() / "02_boat.png"
    with Image.open(path) as image:
        picture = image.copy()
    # Uncompressed pictures of one size have files of one size.
    picture.save(path, compress_level=0)
    study.put_adapter()
    before = path.stat()
    picture.putpixel((3, 3), (0, 0, 0))
    picture.save(path, compress_level=0)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    study.expect("stale", "changed '02_boat.png'", light="complete")


@situation
def captions_changed(study: Study) -> None:
    study.config = study.asked[None] = replace(study.config, captions=True, caption_template="sks, {caption}")
    for artist in (ANNA, BORIS):
        for stem in STEMS:
            (study.images(ORIGINAL, artist) / f"{stem}.txt").write_text(f"a picture of {stem}")
    study.put_all()
    (study.images() / "02_boat.txt").write_text("a ship")
    study.typed += ["--captions", "--caption-template=sks, {caption}"]
    study.expect("stale", "other captions")
    study.expect("stale", "other captions", MIST)


@situation
def another_recipe_than_most(study: Study) -> None:
    study.put_adapter(ORIGINAL, ANNA, replace(study.config, learning_rate=0.5))
    study.other_reasons = BY_TYPED_OPTIONS
    study.expect("stale", "learning_rate", action="skip")


@situation
def max_train_steps_edited_in_study_toml(study: Study) -> None:
    study.write_file(max_train_steps=80)
    study.others = "stale"
    study.asked[None] = replace(study.config, max_train_steps=80)
    study.expect("stale", "max_train_steps 60 -> 80")


@situation
def a_variant_edited_in_study_toml(study: Study) -> None:
    study.put_all(replace(study.config, rank=8), variant="r8")
    study.write_file(variants="[variants.r8]\nrank = 16\n")
    study.asked["r8"] = replace(study.config, rank=16)
    for condition, artist in CELLS:
        study.expect("stale", "rank 8 -> 16", condition, artist, variant="r8")


@situation
def hold_out_added_to_study_toml(study: Study) -> None:
    study.write_file(study="hold_out = 1\n")
    study.asked[None] = replace(study.config, hold_out=1)
    study.others = "stale"
    study.expect("stale")


@situation
def the_base_model_of_study_toml_changed(study: Study) -> None:
    study.write_file()
    (study.base_model / "vae" / "model.safetensors").write_bytes(b"other")
    study.others = "stale"
    study.expect("stale", "another base model")


@situation
def class_images_changed(study: Study) -> None:
    classes = study.folder / "classes"
    write_images(classes, ["one", "two"])
    study.config = study.asked[None] = replace(
        study.config,
        with_prior_preservation=True,
        class_prompt="a painting",
        class_data_dir=str(classes),
        num_class_images=2,
    )
    listed = ClassImages(classes, 2).record()
    for condition, artist in CELLS:
        study.put_adapter(condition, artist, class_images=listed)
    (classes / "two.png").write_bytes((classes / "two.png").read_bytes() + b" ")
    study.typed += ["--with-prior-preservation", "--class-prompt=a painting", "--num-class-images=2"]
    study.typed += [f"--class-data-dir={classes}"]
    study.others = "stale"
    study.expect("stale", "other class images")


@situation
def a_copied_folder(study: Study) -> None:
    source, target = study.output().path, study.output(MIST).path
    shutil.rmtree(target)
    shutil.copytree(source, target)
    study.expect("stale", f"its record is of {ORIGINAL}/{ANNA}", MIST)


# Broken


@situation
def weights_of_another_condition(study: Study) -> None:
    shutil.copyfile(study.output(MIST).weights, study.output().weights)
    study.expect("broken", "sha256", light="complete", action="train")
    study.answer = 1  # samples look in full


@situation
def truncated_weights(study: Study) -> None:
    weights = study.output().weights
    weights.write_bytes(weights.read_bytes()[:-1])
    study.expect("broken", action="train")


@situation
def an_unreadable_record(study: Study) -> None:
    study.output().record.write_text("{")
    study.expect("broken", "training_run.json", action="train")


@situation
def a_missing_adapter_config(study: Study) -> None:
    study.output().config.unlink()
    study.expect("broken", "adapter_config.json is missing", action="repair")


@situation
def a_changed_adapter_config(study: Study) -> None:
    config = study.output().config
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 5}))
    study.expect("broken", "adapter_config.json", action="repair")


# Failed, interrupted


@situation
def a_failed_record_without_weights(study: Study) -> None:
    study.put_record(status="failed", error="it burned", steps=7)
    study.expect("failed", "it burned", action="train", steps=7, step_count=60)


@situation
def a_failed_bookmark_without_a_record(study: Study) -> None:
    study.remove_adapter()
    study.put_bookmark(status="failed", error="it burned")
    study.expect("failed", "it burned", action="train")


@situation
def weights_gone_of_a_complete_record(study: Study) -> None:
    study.put_bookmark(status="complete")
    study.output().weights.unlink()
    study.expect("interrupted", "weights are gone", action="train")


@situation
def stopped_by_a_signal(study: Study) -> None:
    study.put_record(status="interrupted", error="stopped by SIGINT", steps=20)
    study.put_checkpoint(20)
    study.expect("interrupted", "SIGINT", action="train", steps=20, step_count=60, checkpoint=20)


@situation
def killed_while_running(study: Study) -> None:
    folder = study.put_record(status="running")
    study.put_checkpoint(20)
    study.put_checkpoint(40)
    study.put_claim(folder, {"pid": 2**22 + 1, "started": "long ago"})
    study.expect("interrupted", action="train", step_count=60, checkpoint=40)


@situation
def a_checkpoint_without_a_record(study: Study) -> None:
    study.remove_adapter()
    study.put_checkpoint(20)
    study.expect("interrupted", action="train", checkpoint=20)


@situation
def a_damaged_newest_checkpoint(study: Study) -> None:
    study.put_record(status="interrupted", error="stopped by SIGINT")
    study.put_checkpoint(20)
    study.put_checkpoint(40)
    (study.output().path / "checkpoint-40" / "state.safetensors").unlink()
    study.expect("interrupted", "SIGINT", checkpoint=20)


@bare_situation
def a_stopped_run_of_rank_8(study: Study) -> None:
    config = replace(study.config, rank=8, max_train_steps=200)
    stop(study, config)
    study.typed, study.asked[None] = typed_words(config), config
    study.expect("interrupted", "SIGINT", steps=14, step_count=200, checkpoint=14)
    study.others = "waiting"


@bare_situation
def a_killed_run_of_rank_8(study: Study) -> None:
    a_stopped_run_of_rank_8(study)
    study.put_record(ORIGINAL, ANNA, study.asked[None], status="running")
    study.expect("interrupted", step_count=200, checkpoint=14)


@bare_situation
def a_lone_checkpoint_of_rank_8(study: Study) -> None:
    a_stopped_run_of_rank_8(study)
    study.output().record.unlink()
    study.answer = 0  # which base model it was is not known, so that a dry run is all that is safe
    study.expect("interrupted", checkpoint=14)


@situation
def a_stopped_run_of_a_variant_beside_study_toml(study: Study) -> None:
    config = study.asked["r8"] = replace(study.config, rank=8, max_train_steps=200)
    study.write_file()
    stop(study, config, variant="r8")
    for condition, artist in CELLS:
        study.expect("waiting", "", condition, artist, variant="r8")
        study.expect("complete", "", condition, artist)
    study.expect("interrupted", "SIGINT", variant="r8", step_count=200, checkpoint=14)


@situation
def a_stopped_run_of_a_variant_that_a_filter_names(study: Study) -> None:
    a_stopped_run_of_a_variant_beside_study_toml(study)
    study.filters = ["--variant=r8"]
    study.typed = ["--rank=8", "--max-train-steps=200"]


@situation
def a_stopped_run_of_a_variant_without_a_file(study: Study) -> None:
    a_stopped_run_of_a_variant_beside_study_toml(study)
    study.tree.study_file.unlink()
    study.filters = ["--variant=r8"]
    study.typed = typed_words(study.asked["r8"])


def stop(study: Study, config: TuningConfig, variant: str | None = None) -> None:
    """Leave what a training leaves that was stopped at step 14."""
    stopped: dict[str, Any] = {"status": "interrupted", "error": "stopped by SIGINT", "steps": 14}
    study.put_record(ORIGINAL, ANNA, config, variant=variant, **stopped)
    study.put_checkpoint(14, ORIGINAL, ANNA, config, variant=variant)


# Blocked


@situation
def an_unpaired_set(study: Study) -> None:
    study.remove_adapter(MIST)
    (study.images(MIST) / "02_boat.png").unlink()
    study.expect("blocked", "unpaired", MIST, action="block")


@situation
def an_unpaired_set_that_failed_before(study: Study) -> None:
    study.put_record(MIST, status="failed", error="it burned")
    (study.images(MIST) / "02_boat.png").unlink()
    study.expect("blocked", "unpaired", MIST, action="block")


@situation
def names_that_clash(study: Study) -> None:
    study.put_record(MIST, status="failed", error="it burned")
    shutil.copyfile(study.images(MIST) / "02_boat.png", study.images(MIST) / "02_boat.jpg")
    study.expect("blocked", "02_boat", MIST, action="block")


@bare_situation
def a_hold_out_that_leaves_nothing(study: Study) -> None:
    for condition in (ORIGINAL, MIST):
        write_images(study.images(condition, BORIS), ["04_road", "05_wood"])
    study.write_file(study="hold_out = 3\n")
    study.asked[None] = replace(study.config, hold_out=3)
    hold_out(study, 3)
    study.expect("blocked", "no image", action="block")
    study.expect("blocked", "no image", MIST)


@situation
def a_blocked_bookmark(study: Study) -> None:
    study.remove_adapter()
    study.put_bookmark(status="blocked", error="no images yet")
    study.expect("blocked", "no images yet")


@situation
def a_blocked_record(study: Study) -> None:
    study.put_record(status="blocked", error="2 images cannot be read")
    study.expect("blocked", "2 images cannot be read")


# Queued, running


@situation
def a_queued_job(study: Study) -> None:
    study.remove_adapter()
    with pytest.MonkeyPatch.context() as patch:
        slurm = FakeSlurm.install(study.folder / "bin", patch)
        path = os.environ["PATH"]
    os.environ["PATH"] = path  # the study puts it back
    name = put_submission(study.tree, [AdapterId(STACK, ORIGINAL, ANNA).key])
    slurm.show(f"{name}|17|0|PENDING||Priority")
    study.typed.append("--engine=slurm")
    study.expect("queued", "17", action="wait")


@situation
def a_training_that_runs(study: Study) -> None:
    folder = study.put_record(status="running")
    folder.metrics.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 1.0}\n{"st')
    study.hold(folder)
    study.expect("running", "pid", action="wait", steps=2, step_count=60)


@situation
def a_training_that_begins(study: Study) -> None:
    study.hold(study.remove_adapter())
    study.expect("running", "pid", action="wait")


@situation
def complete_weights_that_somebody_works_on(study: Study) -> None:
    study.hold(study.output())
    study.expect("complete")


@situation
def broken_weights_that_somebody_works_on(study: Study) -> None:
    truncated_weights(study)
    study.hold(study.output())
    study.expect("broken", action="wait")


# Waiting, no data


@bare_situation
def nothing_there(study: Study) -> None:
    study.others, study.no_report = "waiting", True
    study.answer = 2  # the usual base model is not here
    study.expect("waiting", action="train")


@situation
def one_adapter_left_to_train(study: Study) -> None:
    study.remove_adapter()
    study.expect("waiting", action="train")


@situation
def a_part_of_the_recipe_in_study_toml(study: Study) -> None:
    study.write_file()
    study.tree.study_file.write_text(study.tree.study_file.read_text().replace("max_train_steps = 60", ""))
    study.typed = ["--max-train-steps=60"]
    study.remove_adapter()
    study.expect("waiting", action="train")


@situation
def the_same_images_in_two_conditions(study: Study) -> None:
    shutil.copytree(study.tree.protected_art / "mist", study.tree.protected_art / "style_guard")
    for artist in (ANNA, BORIS):
        study.expect("waiting", "", Condition("style_guard"), artist, action="block")


@situation
def a_complete_bookmark_of_an_adapter_that_is_gone(study: Study) -> None:
    shutil.rmtree(study.output().path)
    study.put_bookmark(status="complete")
    study.expect("waiting", action="train")


@situation
def set_aside_by_overwrite(study: Study) -> None:
    study.output().set_aside("complete")
    study.put_bookmark(status="waiting", note="set aside by --overwrite")
    study.expect("waiting", "--overwrite", action="train")


@situation
def an_artist_without_protected_art(study: Study) -> None:
    write_images(study.images(ORIGINAL, CLARA))
    study.put_adapter(ORIGINAL, CLARA)
    study.expect("no data", "no images", MIST, CLARA)
    study.expect("complete", "", ORIGINAL, CLARA)


@situation
def a_countermeasure_of_one_protection(study: Study) -> None:
    root = study.tree.robust_samples / "noisy_upscaling" / "mist"
    write_images(study.tree.images_of(root, ANNA), salt="countered")
    countered = replace(MIST, countermeasure="noisy_upscaling")
    for condition in (UNCOUNTERED, countered):
        for artist in (ANNA, BORIS):
            study.expect("no data", "", condition, artist)
    study.expect("waiting", "", countered)


# Series and filters


@situation
def a_variant_of_study_toml(study: Study) -> None:
    study.write_file(variants="[variants.r8]\nrank = 8\n")
    config = study.asked["r8"] = replace(study.config, rank=8)
    study.put_adapter(ORIGINAL, ANNA, config, variant="r8")
    study.others = "waiting"
    for condition, artist in CELLS:
        study.expect("complete", "", condition, artist)
    study.expect("complete", variant="r8")


@situation
def a_replicate_of_study_toml(study: Study) -> None:
    study.write_file(study="replicates = 2\n")
    config = study.asked["seed-43"] = replace(study.config, seed=43)
    study.put_all(config, variant="seed-43")
    study.output(variant="seed-43").weights.unlink()
    study.expect("interrupted", "weights are gone", variant="seed-43", seed=43)


@situation
def filters_of_condition_and_artist(study: Study) -> None:
    study.remove_adapter(MIST, ANNA)
    study.remove_adapter(MIST, BORIS)
    study.filters = ["--protection=mist", "--countermeasure=none", f"--artist={ANNA.name}"]
    study.expect("waiting", "", MIST)
    study.expect("complete", "", ORIGINAL)


@situation
def the_filter_all(study: Study) -> None:
    study.remove_adapter(MIST)
    study.filters = ["--protection=all", "--countermeasure=all"]
    study.expect("waiting", "", MIST)
