"""Which prompt each sample is trained with."""

from collections.abc import Sequence
from dataclasses import dataclass

from mimicry.tuning.hf_diffusers.training.rng import CLASS, Sample


@dataclass(frozen=True)
class PromptPlan:
    """The prompts of a run.

    `texts` are distinct, the first one is the instance prompt. `of_image` has a row of `texts` for each
    image, `of_class` the row for class samples.
    """

    texts: tuple[str, ...]
    of_image: tuple[int, ...]
    of_class: int

    @classmethod
    def make(
        cls, instance_prompt: str, captions: Sequence[str | None], class_prompt: str | None
    ) -> "PromptPlan":
        """Return the plan for images with these captions; one without gets the instance prompt."""
        of_image = [caption or instance_prompt for caption in captions]
        of_class = class_prompt or instance_prompt
        texts = list(dict.fromkeys([instance_prompt, *of_image, of_class]))
        rows = {text: row for row, text in enumerate(texts)}
        return cls(tuple(texts), tuple(rows[text] for text in of_image), rows[of_class])

    @property
    def class_text(self) -> str:
        """The prompt of class samples."""
        return self.texts[self.of_class]

    def index_of(self, sample: Sample) -> int:
        """Return the row of `texts` for `sample`."""
        return self.of_class if sample.kind == CLASS else self.of_image[sample.image]
