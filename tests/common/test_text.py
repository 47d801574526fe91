"""Names in lines for people: one line stays one line, and a command can be typed as it is shown."""

import pytest

from mimicry.common.text import message_lines, printable, shell_line
from tests.hostile_names import HOSTILE_NAMES, over_hostile_names
from tests.shells import shell_words


@over_hostile_names
def test_a_printable_name_is_one_line(hostile_name: str) -> None:
    shown = printable(hostile_name)

    assert shown.isprintable()
    assert shown == hostile_name or not hostile_name.isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[2K", r"\x1b[2K"),
        ("\udcff", r"\udcff"),
        ("caf\u00e9", "café"),
        ("\u2028", r"\u2028"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_line_break_in_a_message_begins_no_line_of_its_own() -> None:
    assert message_lines("it failed\nerror: forged\r\x1b[1A") == "it failed\n  error: forged\\r\\x1b[1A"
    assert message_lines("why:\n  | a line of a log") == "why:\n  | a line of a log"


def test_a_shell_takes_the_line_back_to_the_same_words() -> None:
    words = [*HOSTILE_NAMES, "\udcff\n1", "it's\n\\n", ""]

    line = shell_line(words)

    assert line.isprintable()
    assert shell_words(line) == words
