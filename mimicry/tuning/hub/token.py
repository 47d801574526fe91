"""The token that uploads need."""

from mimicry.common.environment import hub_token

TOKENS_PAGE = "https://huggingface.co/settings/tokens"


def token_problems() -> list[str]:
    """Return what is wrong with the token, before anything is trained; for runs with uploads on."""
    if hub_token() is not None:
        return []
    return [
        "HF_TOKEN is not set, and trained adapters are to be uploaded to the Hub: make a token with write "
        f"access at {TOKENS_PAGE} and set HF_TOKEN in the environment or in a file .env (.env.example shows "
        "it), or switch uploads off with --no-push-to-hub"
    ]
