"""Names of repositories, and what is said of a missing token."""

import subprocess
import sys
import unicodedata

import pytest
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from mimicry.study import AdapterId, Artist, Condition
from mimicry.tuning.hub.names import (
    colliding_names,
    is_model_id,
    name_problems,
    repository_name,
    token_problems,
)

ORIGINAL = Condition()
HOSTILE_NAMES = [
    "two words",
    "Georgia O'Keeffe",
    'say "cheese"',
    "line\nbreak",
    "-leading-dash",
    "trailing-dash-",
    "{x}",
    "..",
    ".hidden",
    "double--dash",
    "ends.git",
    "Édouard Manet",
    "Albrecht_Dürer",
    "王羲之",
    "日本",
    "Ø",
    "ﬁne",
    "a" * 255,
    "é" * 127,
    "\udcff\udcfe",
    "",
]


def name_of(artist: str, condition: Condition = ORIGINAL, variant: str | None = None) -> str:
    adapter = AdapterId("hf_diffusers", condition, Artist("historical", "baroque", artist), variant)
    return repository_name("sd35-lora", adapter)


@pytest.mark.parametrize("artist", HOSTILE_NAMES)
def test_hostile_names_become_valid(artist: str) -> None:
    name = name_of(artist, Condition("mist", "noisy_upscaling"))
    validate_repo_id(f"lab/{name}")
    assert name.startswith("sd35-lora-mist-noisy_upscaling")
    assert len(name) <= 96


def test_hostile_names_stay_distinct() -> None:
    names = {name_of(artist).lower() for artist in HOSTILE_NAMES}
    assert len(names) == len(HOSTILE_NAMES)


@pytest.mark.parametrize("artist", ["Claude_Monet", "J.M.W.Turner", "van-Gogh", "x" * 76])
def test_plain_names_stay_as_they_are(artist: str) -> None:
    assert name_of(artist) == f"sd35-lora-none-none-{artist}"


def test_a_variant_comes_last() -> None:
    assert name_of("Anna", variant="rank64") == "sd35-lora-none-none-Anna-rank64"


def test_accents_are_stripped_and_kept_apart() -> None:
    accented = name_of("Édouard_Manet")
    assert accented.startswith("sd35-lora-none-none-Edouard_Manet-")
    assert accented != name_of("Edouard_Manet")
    assert accented != name_of("Èdouard_Manet")


@pytest.mark.parametrize("artist", ["Édouard_Manet", "Ångström", "é" * 127])
def test_both_normal_forms_are_one_name(artist: str) -> None:
    composed, decomposed = (unicodedata.normalize(form, artist) for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert name_of(composed) == name_of(decomposed)


def test_long_names_differ_by_their_lost_ends() -> None:
    first, second = (name_of("a" * 200 + end) for end in "xy")
    assert first != second
    assert len(first) == len(second) == 96


def test_collisions_name_all_artists() -> None:
    problems = colliding_names(
        [
            ("historical/baroque/Anna", "sd35-lora-none-none-Anna"),
            ("historical/baroque/Berta", "sd35-lora-none-none-Berta"),
            ("contemporary/pop/ANNA", "sd35-lora-none-none-ANNA"),
        ]
    )
    assert len(problems) == 1
    assert "'historical/baroque/Anna' and 'contemporary/pop/ANNA'" in problems[0]
    assert "--no-push-to-hub" in problems[0]
    assert "Berta" not in problems[0]


def test_missing_token_is_one_problem_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", " ")
    (problem,) = token_problems()
    assert all(word in problem for word in ("HF_TOKEN", ".env", "--no-push-to-hub"))
    monkeypatch.setenv("HF_TOKEN", "hf_something")
    assert token_problems() == []


def test_importing_hub_imports_nothing_slow() -> None:
    code = (
        "import sys, mimicry.tuning.hub.upload, mimicry.tuning.hub.names, mimicry.common.environment; "
        "print(sorted({'torch', 'numpy', 'huggingface_hub', 'psutil', 'dotenv', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class TestNamesThatAreTyped:
    @pytest.mark.parametrize("name", ["Anna", "lab/Anna_Berg", "a.b-c", "_x", "7", "n" * 96])
    def test_valid(self, name: str) -> None:
        assert name_problems("--hub-model-id", name) == []

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("n" * 97, "at most 96 letters"),
            ("André", "without accents"),
            ("two words", "letters A to Z"),
            ("a--b", "single - and ."),
            ("-a", "letters A to Z"),
            ("a..b", "single - and ."),
            ("a.git", "letters A to Z"),
            ("", "letters A to Z"),
            ("lab/", "letters A to Z"),
            ("a/b/c", "NAME or NAMESPACE/NAME"),
            ("two\nlines", "letters A to Z"),
            ("end\n", "letters A to Z"),
        ],
    )
    def test_invalid(self, name: str, words: str) -> None:
        (problem,) = name_problems("--hub-model-id", name)
        assert problem.startswith(f"--hub-model-id {name!r} is not a name on the Hub: ")
        assert words in problem

    @pytest.mark.parametrize(
        ("name", "valid"),
        [
            ("stabilityai/stable-diffusion-3.5-large", True),
            ("tiny", False),
            ("/models/tiny", False),
            ("_private/tiny", False),
            ("a/b/c", False),
        ],
    )
    def test_ids_of_models(self, name: str, valid: bool) -> None:
        assert is_model_id(name) is valid
