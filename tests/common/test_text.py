"""Text for people: one line stays one line, and a command can be typed as it is shown."""

import pytest

from mimicry.common.text import first_few, message_lines, printable, shell_line, text_table
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


def test_a_line_break_in_a_message_cannot_forge_a_message() -> None:
    assert message_lines("it failed\nerror: forged\r\x1b[1A") == "it failed\n  error: forged\\r\\x1b[1A"
    assert message_lines("why:\n  | a line of a log") == "why:\n  | a line of a log"


def test_a_shell_splits_the_line_into_the_same_words() -> None:
    words = [*HOSTILE_NAMES, "\udcff\n1", "it's\n\\n", ""]

    line = shell_line(words)

    assert line.isprintable()
    assert shell_words(line) == words


@pytest.mark.parametrize(
    ("names", "text"),
    [([], ""), (["a"], "'a'"), (list("abc"), "'a', 'b', 'c'"), (list("abcde"), "'a', 'b', 'c' and 2 more")],
)
def test_a_long_list_is_cut_short(names: list[str], text: str) -> None:
    assert first_few(names) == text


def test_columns_are_aligned_and_the_last_one_is_not_padded() -> None:
    table = text_table(("a", "long header", "b"), [("wide cell", "x", "end"), ("", "", "")])

    assert table.split("\n") == ["a          long header  b", "wide cell  x            end", ""]


@over_hostile_names
def test_a_name_in_a_table_takes_one_line_whatever_is_in_it(hostile_name: str) -> None:
    table = text_table(("artist",), [(hostile_name,), ("next",)])

    header, shown, following = table.splitlines()
    assert (header, following) == ("artist", "next")
    assert shown.isprintable()
    if hostile_name.isprintable():
        assert shown == hostile_name.rstrip()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines", r"two\nlines"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\udcff", r"\udcff"),
        ("\u202e", r"\u202e"),
    ],
    ids=ascii,
)
def test_a_table_escapes_what_cannot_be_printed(name: str, shown: str) -> None:
    assert text_table(("x",), [(name,)]) == f"x\n{shown}"
