"""What a shell makes of a command line that was shown to be typed."""

import subprocess


def shell_words(line: str) -> list[str]:
    """Return the words that bash hands to the program of `line`, the program included."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]
