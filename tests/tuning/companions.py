"""Options that are allowed together only, for tests that try options one by one."""

from typing import Any

# Prior preservation takes all of these or none.
PRIOR: dict[str, Any] = {
    "with_prior_preservation": True,
    "class_prompt": "a painting",
    "class_data_dir": "class images",
}


def with_companions(**values: Any) -> dict[str, Any]:
    """Return `values` with the other options that one of them needs."""
    if "caption_template" in values:
        values = {"captions": True} | values
    return PRIOR | values if PRIOR.keys() & values.keys() else values
