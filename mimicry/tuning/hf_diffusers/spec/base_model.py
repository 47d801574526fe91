"""The base model: its files, what is wrong with them, and its download from the Hub. No torch."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicry.common.errors import BatchFault
from mimicry.common.files import canonical_json, sha256_file, sha256_text
from mimicry.tuning.hub.upload import read_access_error
from mimicry.tuning.options.config import TuningConfig

COMPONENTS = (
    "scheduler",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
    "transformer",
    "vae",
)
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
# T5 may be missing: the model then sees zeros in its place, as in diffusers' pipeline.
_OPTIONAL = ("text_encoder_3", "tokenizer_3")
_WHOLE_FILE_BYTES = 64 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class BaseModel:
    """A base model on disk, in the diffusers layout.

    `name` is None for a folder of the user's own; `revision` is the commit that a Hub name was resolved to.
    """

    folder: Path
    name: str | None = None
    revision: str | None = None

    @classmethod
    def find(cls, config: TuningConfig) -> "BaseModel | None":
        """Return the model without using the network; None when it must be downloaded first."""
        # Unlike Path's methods, these two accept a name too long for a file, or an unknown user's home.
        given = os.path.expanduser(config.pretrained_model_name_or_path)  # noqa: PTH111
        if os.path.isdir(given):  # noqa: PTH112
            return cls(folder=Path(given).resolve())
        index = cached_file(config, "model_index.json")
        if index is None or not _is_whole(index):
            return None
        return cls.downloaded(config.pretrained_model_name_or_path, index.parent)

    @classmethod
    def resolve(cls, config: TuningConfig) -> "BaseModel":
        """Return the model, downloaded if need be; raises BatchFault where it cannot be."""
        return cls.find(config) or cls.downloaded(config.pretrained_model_name_or_path, download(config))

    @classmethod
    def downloaded(cls, name: str, folder: Path) -> "BaseModel":
        """Return the model whose snapshot huggingface_hub keeps in `folder`."""
        return cls(folder=folder, name=name, revision=folder.name if _COMMIT.fullmatch(folder.name) else None)

    @classmethod
    def usable(cls, config: TuningConfig) -> "BaseModel":
        """Return the model, downloaded if need be; raises BatchFault where it cannot be had, or be used."""
        model = cls.resolve(config)
        if problems := model.problems(config.resolution):
            raise BatchFault(*problems)
        return model

    def identity(self, components: Sequence[str] = COMPONENTS) -> dict[str, str | None]:
        """Return Hub name and commit, or a fingerprint of `components`, wherever the folder lies."""
        if self.revision is not None:
            return {"name": self.name, "revision": self.revision}
        return {"name": self.name, "fingerprint": self._fingerprint(components)}

    def config_of(self, component: str) -> Mapping[str, Any]:
        """Return the config.json of a component, such as vae."""
        config = json.loads((self.folder / component / "config.json").read_text("utf-8"))
        return config if isinstance(config, dict) else {}

    def weight_bytes(self, component: str, variant: str | None) -> int:
        """Return the size of a component's weights in their files: of those of `variant`, as `fp16`."""
        files = (self.folder / component).glob("*.safetensors")
        # diffusion_pytorch_model.fp16-00001-of-00002.safetensors
        return sum(
            path.stat().st_size
            for path in files
            if (f".{variant}" in path.stem if variant else "." not in path.stem)
        )

    def problems(self, resolution: int) -> list[str]:
        """Return what is wrong with the model's files, or with training it at `resolution` pixels."""
        missing = [name for name in COMPONENTS if name not in _OPTIONAL and not (self.folder / name).is_dir()]
        if missing:
            return [
                f"base model {self.folder} is not a Stable Diffusion 3 pipeline in the diffusers layout: it "
                f"lacks {', '.join(missing)}; name another with --pretrained-model-name-or-path"
            ]
        pickled = [name for name in COMPONENTS if _is_pickled(self.folder / name)]
        if pickled:
            return [
                f"base model {self.folder} has weights of {', '.join(pickled)} as pickles only, which can "
                f"run any program when they are read; save it with safe_serialization=True"
            ]
        try:
            vae, transformer = self.config_of("vae"), self.config_of("transformer")
            step = 2 ** (len(vae["block_out_channels"]) - 1) * int(transformer["patch_size"])
            largest = step * int(transformer["pos_embed_max_size"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            return [f"base model {self.folder} has no readable config of vae and transformer: {error!r}"]
        if resolution % step == 0 and resolution <= largest:
            return []
        nearest = min(largest, max(step, round(resolution / step) * step))
        return [
            f"--resolution {resolution}: {self.name or self.folder.name} takes multiples of {step} up to "
            f"{largest}; type --resolution {nearest}"
        ]

    def _fingerprint(self, components: Sequence[str]) -> str:
        # Large weights are fingerprinted by size, head and tail: to hash 28 GB would take minutes each time.
        facts = {}
        for component in components:
            for path in sorted((self.folder / component).rglob("*")):
                if path.is_file() and not path.name.startswith("."):
                    facts[path.relative_to(self.folder).as_posix()] = _file_facts(path)
        return sha256_text(canonical_json(facts))


def _is_whole(index: Path) -> bool:
    """Return whether a download went to its end: the index comes first, and names the parts to follow."""
    try:
        parts = json.loads(index.read_text("utf-8")).items()
        # "vae": ["diffusers", "AutoencoderKL"], and two nulls for a part that is left out on purpose.
        names = [name for name, value in parts if isinstance(value, list) and value[0] is not None]
        return all(_has_files(index.parent / name) for name in names)
    except (OSError, ValueError, KeyError, IndexError, AttributeError):
        return False


def _has_files(component: Path) -> bool:
    if not (component / "config.json").exists():  # a scheduler or tokenizer has no weights
        return component.is_dir()
    shards = {
        shard
        for listing in component.glob("*.safetensors.index*.json")
        for shard in json.loads(listing.read_text("utf-8"))["weight_map"].values()
    }
    present = {path.name for path in component.glob("*.safetensors")}
    return bool(present) and shards <= present


def _is_pickled(component: Path) -> bool:
    suffixes = {path.suffix for path in component.iterdir()} if component.is_dir() else set()
    return ".safetensors" not in suffixes and not suffixes.isdisjoint({".bin", ".pt", ".pth", ".ckpt"})


def _file_facts(path: Path) -> list[int | str]:
    size = path.stat().st_size
    if size <= _WHOLE_FILE_BYTES:
        return [size, sha256_file(path)]
    with path.open("rb") as file:
        head = file.read(1 << 20)
        file.seek(-(1 << 20), 2)
        return [size, sha256_text((head + file.read()).hex())]


def cached_file(config: TuningConfig, name: str) -> Path | None:
    """Return a file of the base model in the cache of huggingface_hub, or None; without the network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(
            config.pretrained_model_name_or_path,
            name,
            cache_dir=config.cache_dir,
            revision=config.revision,
        )
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def download(config: TuningConfig) -> Path:
    """Download the base model, and return the folder of its snapshot; raises BatchFault."""
    from diffusers import StableDiffusion3Pipeline

    name = config.pretrained_model_name_or_path
    try:
        folder = StableDiffusion3Pipeline.download(
            name, revision=config.revision, variant=config.variant, cache_dir=config.cache_dir
        )
    # The client raises errors of its HTTP library, which differ between its versions.
    except Exception as error:
        raise BatchFault(access_problem(name, error)) from error
    return Path(folder)


def missing_model_problems(config: TuningConfig, *, network: bool) -> list[str]:
    """Return why the model cannot be downloaded; without `network` only the form of its name is checked."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    name = config.pretrained_model_name_or_path
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        return [f"--pretrained-model-name-or-path {name}: there is no such folder"]
    if not network:
        return []
    if HF_HUB_OFFLINE:
        return [f"base model {name} is not in the cache, and HF_HUB_OFFLINE forbids fetching it; unset it"]
    error = read_access_error(name)
    return [] if error is None else [access_problem(name, error)]


def access_problem(name: str, error: Exception) -> str:
    """Return a message for a base model that could not be had from the Hub."""
    # diffusers wraps the client's errors into its own.
    cause = error.__cause__ if type(error) is OSError and isinstance(error.__cause__, Exception) else error
    kind = type(cause).__name__
    if kind == "GatedRepoError":
        return (
            f"access to {name} is refused: accept its licence at https://huggingface.co/{name} with the "
            f"account of HF_TOKEN, and set HF_TOKEN in the environment or in .env"
        )
    if kind in ("RepositoryNotFoundError", "HFValidationError"):
        return (
            f"--pretrained-model-name-or-path {name}: no such folder here, and no such model on the Hub "
            f"that HF_TOKEN may read"
        )
    first = str(cause).strip().splitlines()[0] if str(cause).strip() else kind
    return f"base model {name} cannot be had from the Hub: {first}; check the network, or name a local folder"
