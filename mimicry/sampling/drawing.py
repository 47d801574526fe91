"""Drawing what a plan says: one base model in memory at a time, for all adapters that draw alike."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from mimicry.common.claims import Claim, claimed_by
from mimicry.common.environment import quiet_libraries
from mimicry.common.errors import AdapterBroken, BatchFault, ClaimedElsewhere
from mimicry.sampling.plan import SampleRequest, SampleSet, is_drawn
from mimicry.study import State, save_sample
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.options.config import TuningConfig

if TYPE_CHECKING:
    from mimicry.sampling.sampler import Sampler

# Between two looks at what another call draws.
_WAIT_SECONDS = 0.5


def usable_model(config: TuningConfig) -> BaseModel:
    """Return the base model that `config` names, downloaded if need be.

    Raises:
        BatchFault: it cannot be had, or cannot draw at this resolution.
    """
    model = BaseModel.resolve(config)
    problems = model.problems(config.resolution)
    if problems:
        raise BatchFault(*problems)
    return model


def draw(
    sets: Sequence[SampleSet], models: Mapping[TuningConfig, BaseModel], request: SampleRequest
) -> list[SampleSet]:
    """Draw what is to be drawn, and return the sets with the problems that came up."""
    drawn = list(sets)
    count = sum(len(found.of(State.PENDING)) for found in sets)
    with tqdm(total=count, unit="image", desc="drawing", disable=None) as bar:
        # One base model is in memory at a time, for all adapters that draw alike.
        for config, model in models.items():
            places = [
                place
                for place, found in enumerate(sets)
                if found.config == config and found.of(State.PENDING)
            ]
            for group, trained_layers in _groups(model, sets, places):
                prompts = [picture.prompt for place in group for picture in sets[place].of(State.PENDING)]
                sampler = _sampler(model, config, request, prompts, trained_layers)
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


def _groups(
    model: BaseModel, sets: Sequence[SampleSet], places: Sequence[int]
) -> Iterator[tuple[list[int], list[str]]]:
    """Yield the places of adapters that a conditioning table will do for, then of those that need more.

    With them come the layers that the adapters train and the table would replace: none, or those.
    """
    if not places:
        return
    quiet_libraries()
    from mimicry.sampling.sampler import replaced_layers

    layers = {place: replaced_layers(model, sets[place].adapter_dir) for place in places}
    for needs_more in (False, True):
        group = [place for place in places if bool(layers[place]) is needs_more]
        if group:
            yield group, sorted({layer for place in group for layer in layers[place]})


def _sampler(
    model: BaseModel,
    config: TuningConfig,
    request: SampleRequest,
    prompts: Sequence[str],
    trained_layers: Sequence[str],
) -> "Sampler":
    from mimicry.sampling.sampler import Sampler
    from mimicry.tuning.hf_diffusers.sd3.sampling import SamplingSettings

    settings = SamplingSettings(resolution=config.resolution, steps=request.steps, guidance=request.guidance)
    return Sampler.load(model, config, settings, prompts, trained_layers)


def _draw_set(sampler: "Sampler", found: SampleSet, bar: "tqdm[Any]") -> SampleSet:
    """Draw what is missing of a set, unless another call draws it.

    Raises:
        ClaimedElsewhere: another call does.
    """
    with Claim.take_anew(found.folder):
        missing = [picture for picture in found.of(State.PENDING) if not is_drawn(picture)]
        bar.update(len(found.of(State.PENDING)) - len(missing))
        if not missing:
            return found
        try:
            with sampler.base.adapter(found.adapter_dir):
                for picture in missing:
                    _save(picture.path, sampler.image(picture.prompt, picture.seed), picture.settings)
                    bar.update()
        except AdapterBroken as error:
            return replace(found, problem=str(error))
    return found


def _draw_after_another(sampler: "Sampler", found: SampleSet, bar: "tqdm[Any]") -> SampleSet:
    """Wait until the call that draws a set is done, and draw what it has left."""
    while True:
        if holder := claimed_by(found.folder):
            bar.write(f"{found.name}: waiting, {holder}")
        while claimed_by(found.folder):
            time.sleep(_WAIT_SECONDS)
        with suppress(ClaimedElsewhere):
            return _draw_set(sampler, found, bar)


def _save(path: Path, image: Any, settings: Any) -> None:
    try:
        save_sample(path, image, settings)
    except OSError as error:
        raise BatchFault(f"{path} cannot be written: {error.strerror}; make room, or the right to") from error
