"""Draw samples of trained adapters: the program `mimicry samples`.

mimicry samples --pilot --contact-sheet sheet.png
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from mimicry.common.claims import Claim, claimed_by
from mimicry.common.environment import quiet_libraries
from mimicry.common.errors import AdapterBroken, BatchFault, ClaimedElsewhere, UsageError
from mimicry.common.text import text_table
from mimicry.sampling.contact_sheet import Layout, sheet_options, write_contact_sheet
from mimicry.sampling.plan import SampleRequest, SampleSet, is_drawn, of_first_series, plan_samples
from mimicry.study import DEFAULT_GUIDANCE, DEFAULT_STEPS, State, save_sample
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.spec.lora_modules import ADAPTER_FORMAT
from mimicry.tuning.options.click_options import (
    CALL,
    condition_filters,
    hyper_parameter,
    option,
    options,
    program,
    selection_options,
    tree_options,
)
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from mimicry.tuning.options.study_defaults import study_file_of
from mimicry.tuning.stacks import Stack
from mimicry.tuning.status.study_status import read_status

if TYPE_CHECKING:
    from mimicry.sampling.sampler import Sampler

# Between two looks at what another call draws.
_WAIT_SECONDS = 0.5
# What stands in each adapter's record, and may be typed instead.
_CHANGEABLE = {
    "resolution": "Side of the pictures, in pixels",
    "mixed_precision": "Precision of the arithmetic",
    "pretrained_model_name_or_path": "Base model: a Hub name or a folder in the diffusers layout",
    "cache_dir": "Folder for downloaded models",
}
# What the states of a picture are called in the table.
_COLUMNS = {State.WAITING: "to draw", State.COMPLETE: "there", State.STALE: "stale"}
_PICTURES, _HOW = "Pictures", "How they are drawn"

_picture = partial(option, topic=_PICTURES, from_file=True)
_picture_options = options(
    _picture(
        "--prompt",
        "prompts",
        multiple=True,
        help="What to draw; may be repeated. By default the prompt of the training, alone and with subjects.",
    ),
    _picture(
        "--seed",
        "seeds",
        type=click.IntRange(0, 2**63 - 1),
        multiple=True,
        default=(0,),
        help="Seed of the noise that a sample begins with; may be repeated.",
    ),
    _picture("--base/--no-base", default=False, help="Draw with the base model alone, too."),
    sheet_options,
    _picture(
        "--steps",
        topic=_HOW,
        type=click.IntRange(1, 1000),
        default=DEFAULT_STEPS,
        help="Steps from noise to image.",
    ),
    _picture(
        "--guidance",
        topic=_HOW,
        type=click.FloatRange(1, 100),
        default=DEFAULT_GUIDANCE,
        help="Weight of the prompt (classifier-free guidance); 1 is none.",
    ),
    *(
        hyper_parameter(
            declared,
            topic=_HOW,
            default=None,
            show_default=False,
            help=f"{_CHANGEABLE[declared.name]}; by default that of each adapter's record.",
        )
        for declared in OPTIONS
        if declared.name in _CHANGEABLE
    ),
    *(hyper_parameter(one, topic=_HOW, from_file=True) for one in OPTIONS if one.name == "prompt_cache_dir"),
    option("--overwrite", topic=CALL, is_flag=True, help="Draw again what was drawn with other settings."),
    option("--dry-run", topic=CALL, is_flag=True, help="Show what would be drawn; write nothing."),
)


@program("samples")
@tree_options
@condition_filters
@selection_options
@_picture_options
@click.pass_context
def draw_samples(
    context: click.Context, /, dry_run: bool, contact_sheet: Path | None, **parameters: Any
) -> int:
    """Draw samples with the adapters of the study, into mimic_art/ below the data root.

    All conditions that have adapters are drawn, unless --protection or --countermeasure names some. What is
    there with the same settings is skipped, so that the same command takes up where it stopped.
    """
    request = _request(context, parameters, base=parameters["base"] or contact_sheet is not None)
    sets = plan_samples(request)
    if dry_run:
        print(_table(sets))
        return 0
    configs = list(dict.fromkeys(found.config for found in sets))
    is_new = any(BaseModel.find(config) is None for config in configs)
    models = {config: BaseModel.usable(config) for config in configs}
    if is_new:  # what tells a downloaded model from others is part of what pictures are compared by
        sets = plan_samples(request)
    print(_table(sets), flush=True)
    sets = draw(sets, models, request)
    failed = [found for found in sets if found.problem]
    for found in failed:
        print(f"error: {found.name}: {found.problem}", file=sys.stderr)
    if contact_sheet is not None:
        shown, series = of_first_series(sets)
        layout = Layout(parameters["sheet_tile"], parameters["sheet_pictures"])
        write_contact_sheet(contact_sheet, request.tree, shown, layout)
        print(contact_sheet)
        if len(shown) < len(sets):
            print(f"the sheet shows {series}; type --variant NAME for the pictures of another one")
    return 1 if failed else 0


def _request(context: click.Context, parameters: dict[str, Any], *, base: bool) -> SampleRequest:
    typed = {name: parameters[name] for name in (*_CHANGEABLE, "prompt_cache_dir")}
    changes = {name: value for name, value in typed.items() if value is not None}
    TuningConfig(**changes)  # what was typed wrongly is said now, and once
    stack = Stack.find(parameters["stack"])
    if stack.traits.adapter_format != ADAPTER_FORMAT:
        raise UsageError(
            f"--stack {stack.name}: mimicry samples draws with adapters of Stable Diffusion 3 only; name a "
            f"stack that trains these"
        )
    return SampleRequest(
        study=read_status(parameters, study_file_of(context)),
        prompts=parameters["prompts"],
        seeds=parameters["seeds"],
        steps=parameters["steps"],
        guidance=parameters["guidance"],
        base=base,
        overwrite=parameters["overwrite"],
        changes=changes,
    )


def draw(
    sets: Sequence[SampleSet], models: Mapping[TuningConfig, BaseModel], request: SampleRequest
) -> list[SampleSet]:
    """Draw what is to be drawn, and return the sets with the problems that came up."""
    drawn = list(sets)
    count = sum(len(found.of(State.WAITING)) for found in sets)
    with tqdm(total=count, unit="image", desc="drawing", disable=None) as bar:
        # One base model is in memory at a time, for all adapters that draw alike.
        for config, model in models.items():
            places = [
                place
                for place, found in enumerate(sets)
                if found.config == config and found.of(State.WAITING)
            ]
            for group, sampler in _samplers(model, config, request, sets, places):
                left = []
                for place in group:
                    try:
                        drawn[place] = _draw_set(sampler, sets[place], bar)
                    except ClaimedElsewhere:
                        left.append(place)
                for place in left:
                    drawn[place] = _draw_after_another(sampler, sets[place], bar)
                del sampler
    return drawn


def _samplers(
    model: BaseModel,
    config: TuningConfig,
    request: SampleRequest,
    sets: Sequence[SampleSet],
    places: Sequence[int],
) -> Iterator[tuple[list[int], "Sampler"]]:
    """Yield places of adapters with what draws them; first those that a conditioning table will do for."""
    if not places:
        return
    quiet_libraries()
    from mimicry.sampling.sampler import Sampler, replaced_layers
    from mimicry.tuning.hf_diffusers.sd3.sampling import SamplingSettings

    settings = SamplingSettings(resolution=config.resolution, steps=request.steps, guidance=request.guidance)
    # What the adapters train and the table would replace.
    layers = {place: replaced_layers(model, sets[place].adapter_dir) for place in places}
    for needs_more in (False, True):
        group = [place for place in places if bool(layers[place]) is needs_more]
        if group:
            prompts = [picture.prompt for place in group for picture in sets[place].of(State.WAITING)]
            trained = sorted({layer for place in group for layer in layers[place]})
            yield group, Sampler.load(model, config, settings, prompts, trained)


def _draw_set(sampler: "Sampler", found: SampleSet, bar: "tqdm[Any]") -> SampleSet:
    """Draw what is missing of a set; raises ClaimedElsewhere where another call does."""
    with Claim.take_anew(found.folder):
        missing = [picture for picture in found.of(State.WAITING) if not is_drawn(picture)]
        bar.update(len(found.of(State.WAITING)) - len(missing))
        if not missing:
            return found
        try:
            with sampler.base.adapter(found.adapter_dir):
                for picture in missing:
                    image = sampler.image(picture.prompt, picture.seed)
                    try:
                        save_sample(picture.path, image, picture.settings)
                    except OSError as error:
                        raise BatchFault(
                            f"{picture.path} cannot be written: {error.strerror}; make room, or the right to"
                        ) from error
                    bar.update()
        except AdapterBroken as error:
            return replace(found, problem=str(error))
    return found


def _draw_after_another(sampler: "Sampler", found: SampleSet, bar: "tqdm[Any]") -> SampleSet:
    while True:
        if holder := claimed_by(found.folder):
            bar.write(f"{found.name}: waiting, {holder}")
        while claimed_by(found.folder):
            time.sleep(_WAIT_SECONDS)
        with suppress(ClaimedElsewhere):
            return _draw_set(sampler, found, bar)


def _table(sets: Sequence[SampleSet]) -> str:
    rows = []
    for found in sets:
        counts = [str(len(found.of(state))) for state in _COLUMNS]
        stale = "drawn with other settings; kept, type --overwrite" if found.of(State.STALE) else ""
        unpaired = f"unpaired: {found.unpaired}" if found.unpaired else ""
        remarks = (found.recipe, unpaired, found.problem or stale)
        rows.append((found.name, *counts, "; ".join(filter(None, remarks))))
    return text_table(("drawn by", *_COLUMNS.values(), "remark"), rows)
