"""Names that a folder can have and that careless code breaks on. Every test of paths runs over them.

@over_hostile_names
def test_something(hostile_name: str, tmp_path: Path) -> None: ...
"""

import pytest

HOSTILE_NAMES = [
    "with space",
    " leading and trailing space ",
    "O'Keeffe",
    'double "quotes"',
    "two\nlines",
    "tab\tand\rreturn",
    "-leading-dash",
    "--output-dir",
    "{input_dir}",
    "{} {0} %s",
    "O'Keeffe; {x}",
    "Andr\u00e9",  # accent as one code point (NFC)
    "Andre\u0301",  # accent as a code point of its own (NFD)
    "$HOME `id` $(id)",
    "back\\slash",
    "star*? [a-z]",
    "~",
    "#hash & pipe | <angle>",
    "n" * 255,
    "\u00e9" * 127 + "x",  # 255 bytes, 128 letters
    "\U0001f3a8 palette",
    "...",
    "..name",
    "none__none",
    "null",
]

over_hostile_names = pytest.mark.parametrize(
    "hostile_name", HOSTILE_NAMES, ids=[ascii(name)[1:-1][:24] for name in HOSTILE_NAMES]
)
