"""The token that uploads need."""

from mimicry.common.environment import hub_token

# What else can be done about a fault of uploads, where a training can do without them.
WITHOUT_UPLOADS = ", or switch uploads off with --no-push-to-hub"
TOKENS_PAGE = "https://huggingface.co/settings/tokens"


def token_problems(else_do: str = WITHOUT_UPLOADS) -> list[str]:
    """Return what is wrong with the token; `else_do` ends the message."""
    if hub_token() is not None:
        return []
    return [
        "HF_TOKEN is not set, and trained adapters are to be uploaded to the Hub: make a token with write "
        f"access at {TOKENS_PAGE} and set HF_TOKEN in the environment or in a file .env (.env.example shows "
        f"it){else_do}"
    ]
