"""The base model on the Hub: what is cached of it, whether it may be read, and its download."""

from pathlib import Path

from mimicry.common.errors import BatchFault
from mimicry.tuning.hub.upload import hub_is_offline, read_access_error
from mimicry.tuning.options.config import TuningConfig


def cached_file(config: TuningConfig, name: str) -> Path | None:
    """Return a file of the base model that huggingface_hub has in its cache, or None; without the network."""
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
    """Download the base model, and return the folder of its snapshot.

    Raises:
        BatchFault: it cannot be downloaded; the message says why, and what to do.
    """
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
    """Return why a base model that is not on this machine cannot be downloaded.

    Args:
        network: ask the Hub; without it only the form of the name is checked.
    """
    name = config.pretrained_model_name_or_path
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        return [f"--pretrained-model-name-or-path {name}: there is no such folder"]
    if not network:
        return []
    if hub_is_offline():
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
