"""Names of folders and files in lines for people: whatever a name holds, a line stays one line."""

import shlex
from collections.abc import Iterable


def printable(text: str) -> str:
    """Return `text` on one line: what cannot be printed, line breaks included, is escaped as in Python."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode()
        for letter in text
    )


def message_lines(text: str) -> str:
    """Return a message of one line or several, all but the first indented.

    A line break in a folder's name must not begin a line that a program, or its reader, takes for our own.
    """
    first, *others = text.split("\n")
    return "\n".join([printable(first), *("  " + printable(line).removeprefix("  ") for line in others)])


def shell_line(words: Iterable[str]) -> str:
    """Return a command on one line, as bash and zsh take it."""
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
    # Octal digits, three at most, cannot run into what follows; a name that is no UTF-8 keeps its bytes.
    return "".join(f"\\{byte:03o}" for byte in letter.encode("utf-8", "surrogateescape"))
