"""Draw samples of trained adapters: the program `mimicry-samples`.

mimicry-samples --pilot --contact-sheet sheet.png
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started by its path: import from this checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import click
from tqdm import tqdm

from mimicry.common.errors import AdapterBroken, BatchFault, Problems
from mimicry.common.programs import run_command
from mimicry.common.text import text_table
from mimicry.sampling.contact_sheet import write_contact_sheet
from mimicry.sampling.plan import Request, SampleSet, State, make_plan
from mimicry.study.sample_files import DEFAULT_GUIDANCE, DEFAULT_STEPS, save_sample
from mimicry.study.tree import StudyTree
from mimicry.tuning import base_model
from mimicry.tuning.base_model import BaseModel
from mimicry.tuning.options.command_line import options_named, selection_of, selection_options, tree_options
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.stacks import Stack

_SHARED = (
    *("pretrained_model_name_or_path", "revision", "variant", "cache_dir"),
    *("resolution", "mixed_precision", "max_sequence_length", "prompt_cache_dir"),
)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@tree_options
@click.option("--protection", "protections", multiple=True, help="Only of this one; may be repeated.")
@click.option("--countermeasure", "countermeasures", multiple=True, help="Only of this one; may be repeated.")
@selection_options
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help="What to draw; may be repeated. By default the prompt of the training, alone and with subjects.",
)
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(0, 2**63 - 1),
    multiple=True,
    default=(0,),
    help="Seed of the noise that a sample begins with; may be repeated.",
)
@click.option(
    "--steps", type=click.IntRange(1, 1000), default=DEFAULT_STEPS, help="Steps from noise to image."
)
@click.option(
    "--guidance",
    type=click.FloatRange(1, 100),
    default=DEFAULT_GUIDANCE,
    help="Weight of the prompt (classifier-free guidance); 1 is none.",
)
@click.option("--base", is_flag=True, help="Draw with the base model alone, too.")
@click.option("--overwrite", is_flag=True, help="Draw again what was drawn with other settings.")
@click.option("--dry-run", is_flag=True, help="Show what would be drawn; write nothing.")
@click.option(
    "--contact-sheet",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a PNG with a row for each artist: training pictures, base model, conditions. Implies --base.",
)
@options_named(*_SHARED)
def draw_samples(dry_run: bool, contact_sheet: Path | None, **parameters: Any) -> int:
    """Draw samples with the adapters of the study, into mimic_art/ below the data root.

    All conditions that have adapters are drawn, unless --protection or --countermeasure names some. What is
    there with the same settings is skipped, so that the same command takes up where it stopped.
    """
    request = _request(parameters, base=parameters["base"] or contact_sheet is not None)
    if dry_run:
        print(_table(make_plan(request)))
        return 0
    model = base_model.resolve(request.config)
    problems = model.problems(request.config.resolution)
    if problems:
        raise BatchFault(*problems)
    sets = make_plan(replace(request, identity=model.identity()))
    print(_table(sets), flush=True)
    sets = _Drawing(model, request).draw(sets)
    failed = [found for found in sets if found.problem]
    for found in failed:
        print(f"error: {found.name}: {found.problem}", file=sys.stderr)
    if contact_sheet is not None:
        write_contact_sheet(contact_sheet, request.tree, sets)
        print(contact_sheet)
    return 1 if failed else 0


def _request(parameters: dict[str, Any], *, base: bool) -> Request:
    problems = Problems()
    config, stack = TuningConfig(), ""
    with problems:
        config = TuningConfig(**{name: parameters[name] for name in _SHARED})
    with problems:
        stack = Stack.find(parameters["stack"]).name
    problems.raise_any()
    model = BaseModel.find(config)
    return Request(
        tree=StudyTree(parameters["data_root"]),
        stack=stack,
        protections=parameters["protections"],
        countermeasures=parameters["countermeasures"],
        selection=selection_of(parameters),
        prompts=parameters["prompts"],
        seeds=parameters["seeds"],
        base=base,
        overwrite=parameters["overwrite"],
        config=config,
        identity=None if model is None else model.identity(),
        drawing={
            "resolution": config.resolution,
            "steps": parameters["steps"],
            "guidance": parameters["guidance"],
        },
    )


@dataclass
class _Drawing:
    """The drawing of a plan."""

    model: BaseModel
    request: Request

    def draw(self, sets: Sequence[SampleSet]) -> list[SampleSet]:
        """Draw what is to be drawn, and return the sets with the problems that came up."""
        todo = [picture for found in sets for picture in found.of(State.DRAW)]
        if not todo:
            return list(sets)
        from mimicry.sampling.sampler import Sampler
        from mimicry.tuning.hf_diffusers.sd3.sampling import SamplingSettings

        settings = SamplingSettings(**self.request.drawing)
        sampler = Sampler(self.model, self.request.config, settings, [picture.prompt for picture in todo])
        drawn = []
        with tqdm(total=len(todo), unit="image", desc="drawing", disable=None) as bar:
            for found in sets:
                pictures = found.of(State.DRAW)
                try:
                    if pictures:
                        with sampler.adapter(found.adapter_dir):
                            for picture in pictures:
                                image = sampler.image(picture.prompt, picture.seed)
                                _save(picture.path, image, picture.settings)
                                bar.update()
                except AdapterBroken as error:
                    found = replace(found, problem=str(error))
                drawn.append(found)
        return drawn


def _save(path: Path, image: Any, settings: Any) -> None:
    try:
        save_sample(path, image, settings)
    except OSError as error:
        raise BatchFault(f"{path} cannot be written: {error.strerror}; make room, or the right to") from error


def _table(sets: Sequence[SampleSet]) -> str:
    rows = []
    for found in sets:
        counts = [str(len(found.of(state))) for state in State]
        stale = "drawn with other settings; kept, type --overwrite" if found.of(State.STALE) else ""
        rows.append((found.name, *counts, found.problem or stale))
    return text_table(("drawn by", *(state.value for state in State), "remark"), rows)


def main() -> int:
    """Run the program and return its exit code."""
    # It warns that torchvision is missing, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return run_command(draw_samples)


if __name__ == "__main__":
    sys.exit(main())
