"""Text for people: names that may hold anything, lists, tables, and commands to copy into a shell."""

import shlex
from collections.abc import Iterable, Sequence


def printable(text: str) -> str:
    """Return `text` on one line; line breaks and whatever else cannot be printed are escaped as in Python."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode()
        for letter in text
    )


def message_lines(text: str) -> str:
    """Return a message with all lines but the first indented, so that a name cannot forge a message."""
    first, *others = text.split("\n")
    return "\n".join([printable(first), *("  " + printable(line).removeprefix("  ") for line in others)])


def first_few(names: Sequence[str], count: int = 3) -> str:
    """Return the first `count` names, quoted, and how many more there are: "'a', 'b', 'c' and 4 more"."""
    shown = ", ".join(map(repr, names[:count]))
    return shown + (f" and {len(names) - count} more" if len(names) > count else "")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned columns; what cannot be printed is escaped, the last column is not padded."""
    lines = [header, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def shell_line(words: Iterable[str]) -> str:
    """Return a command on one line, quoted for bash and zsh."""
    return " ".join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    escaped = "".join(_ansi_c(letter) for letter in word)
    return f"$'{escaped}'"


def _ansi_c(letter: str) -> str:
    if letter in "\\'":
        return "\\" + letter
    if letter.isprintable():
        return letter
    # Three octal digits cannot run into what follows; a name that is not UTF-8 keeps its bytes.
    return "".join(f"\\{byte:03o}" for byte in letter.encode("utf-8", "surrogateescape"))
