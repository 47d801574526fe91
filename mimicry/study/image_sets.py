"""What is odd about a set of images beside its originals, in words; and how strongly it was changed.

Each is a `Finding`: one line, however many images it is about, and a line for each of them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mimicry.common.text import first_few, printable
from mimicry.study.captions import Captions, image_records
from mimicry.study.comparison import Comparison, same_shape
from mimicry.study.image_checks import BadImage, Examined, Size, examine
from mimicry.study.images import READERS, ImageFolder, Reading
from mimicry.study.pairing import Pairing

# The names that a line gives; where there are more, it says where the list is.
SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One thing that is odd about a set: a line, and a line for each image that it is about."""

    text: str
    items: tuple[str, ...] = ()

    def line(self, lists_at: str) -> str:
        """Return the line; where it does not name all, with the place where they are listed."""
        return f"{self.text} (all: {lists_at})" if len(self.items) > SHOWN else self.text

    def full_list(self, of: str = "") -> str:
        """Return what the line leaves out, a line for each image of `of`; empty where it names all."""
        if len(self.items) <= SHOWN:
            return ""
        heading = f"{of}: {self.text}" if of else self.text
        return "".join(printable(line) + "\n" for line in (heading, *(f"    {item}" for item in self.items)))


@dataclass(frozen=True)
class Dose:
    """How strongly a set was changed: medians of its images, and the largest difference of all, of 255.

    `psnr` is in dB, None where no image was changed.
    """

    psnr: float | None
    linf: float
    largest: int
    images: int

    @classmethod
    def of(cls, found: Iterable[Examined]) -> "Dose | None":
        from statistics import median  # imported late: slow, and `--help` does without it

        compared = [each.comparison for each in found if each.comparison is not None]
        if not compared:
            return None
        changed = [each.psnr for each in compared if each.psnr is not None]
        return cls(
            psnr=round(median(changed), 2) if changed else None,
            linf=median(each.linf for each in compared),
            largest=max(each.linf for each in compared),
            images=len(compared),
        )

    def __str__(self) -> str:
        psnr = "unchanged" if self.psnr is None else f"{self.psnr:.1f} dB"
        return f"{psnr}, {self.linf:g} of 255"


def _if_any(text: str, items: Iterable[str]) -> list[Finding]:
    named = tuple(items)
    return [Finding(text, named)] if named else []


def _few(items: Sequence[str], of: int) -> str:
    shown = ", ".join(items[:SHOWN]) + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "")
    return f"{len(items)} of {of} images: {shown}"


def unusable(images: ImageFolder, bad: Sequence[BadImage]) -> Finding:
    """Return which images of a folder cannot be used: all of `bad`, one at least."""
    problems = tuple(image.problem for image in bad)
    if len(bad) <= SHOWN:
        return Finding("; ".join(problems), problems)
    text = (
        f"{len(bad)} of {len(images.names)} images in {images.path} cannot be used: "
        f"{first_few([image.path.name for image in bad])}; the first one: {problems[0]}"
    )
    return Finding(text, problems)


def ignored(images: ImageFolder, *, captions: bool) -> list[Finding]:
    """Return which files of the folder are not used, counted by suffix; with `captions`, these are used."""
    names = [name for name in images.ignored if not (captions and images.is_caption(name))]
    counted = Counter(name[name.rfind(".") :].lower() if "." in name else "without suffix" for name in names)
    parts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counted.items()))
    readers = dict.fromkeys(READERS[suffix] for suffix in sorted(counted) if suffix in READERS)
    advice = f"; {' and '.join(readers)} would make PNGs of pictures among them" if readers else ""
    return _if_any(f"files that are not used: {parts}{advice}", names)


def geometry(
    pairing: Pairing, sizes: Mapping[str, Size], original_sizes: Mapping[str, Size], reading: Reading
) -> list[Finding]:
    """Return where the sizes of a set, in pixels by name, differ from its originals', as trained on."""
    scaled: dict[str, str] = {}
    reshaped: dict[str, str] = {}
    shorter_sides = []
    for name, size in sizes.items():
        original = original_sizes.get(pairing.partner(name) or "")
        if original is not None and original != size:
            alike = same_shape(original, size)
            if alike and reading.evens_out(original, size):
                continue
            group = scaled if alike else reshaped
            group[name] = f"{_by(size)} where the original has {_by(original)}"
            shorter_sides += [*size, *original] if alike else []
    count = len(pairing.images.names)
    another = "another size than the originals"
    if reading.source_resolution is not None:
        another += f", and less than --source-resolution {reading.source_resolution}"
    advice = f"; --source-resolution {min(shorter_sides)} evens that out" if scaled else ""
    return [
        *_sized(another, scaled, count, "the sets differ in detail as well", advice),
        *_sized(
            "another shape than the originals, squeezed or cropped",
            reshaped,
            count,
            "the sets differ in what they show and in detail as well",
        ),
    ]


def _sized(what: str, sizes: Mapping[str, str], of: int, meaning: str, advice: str = "") -> list[Finding]:
    if not sizes:
        return []
    items = tuple(f"{name!r} has {words}" for name, words in sizes.items())
    alike = set(sizes.values())
    shown = f"{len(sizes)} of {of} images have {alike.pop()}" if len(alike) == 1 else _few(items, of)
    return [Finding(f"{what}: {shown}; {meaning}, and not by the method alone{advice}", items)]


def crop_loss(images: ImageFolder, sizes: Mapping[str, Size]) -> list[Finding]:
    """Return which images lose much to the square that is trained on."""
    items = []
    for name, (width, height) in sizes.items():
        if 3 * min(width, height) < 2 * max(width, height):
            lost = 1 - min(width, height) / max(width, height)
            items.append(f"{name!r} loses {lost:.0%} of {width}x{height}")
    text = f"training takes a square and leaves out more than a third of {_few(items, len(images.names))}"
    return _if_any(text, items)


def _compared(pairing: Pairing, found: Mapping[str, Examined]) -> dict[str, Comparison]:
    names = [name for name in pairing.images.names if name in found]
    return {name: compared for name in names if (compared := found[name].comparison) is not None}


def unchanged(pairing: Pairing, found: Mapping[str, Examined]) -> list[str]:
    """Return the names of the images that are their originals, pixel by pixel."""
    return [name for name, comparison in _compared(pairing, found).items() if comparison.linf == 0]


def unchanged_warning(pairing: Pairing, found: Mapping[str, Examined]) -> list[Finding]:
    """Return that some images are their originals; that all are is another matter."""
    names = unchanged(pairing, found)
    text = (
        f"{len(names)} of {len(pairing.images.names)} images are those of original_art, pixel by pixel: "
        f"{first_few(names, SHOWN)}"
    )
    return _if_any(text, names)


def unlike(pairing: Pairing, found: Mapping[str, Examined]) -> list[Finding]:
    """Return which images are not the pictures of their originals."""
    items = tuple(
        f"{name!r} {comparison.unlike}"
        for name, comparison in _compared(pairing, found).items()
        if comparison.unlike
    )
    return _if_any(f"not the picture of its original, {_few(items, len(pairing.images.names))}", items)


def marks(pairing: Pairing, found: Mapping[str, Examined]) -> tuple[str, ...]:
    """Return in what a set cannot be compared with others image by image: what --allow-unpaired lets pass."""
    parts = [pairing.problem, *(finding.text for finding in unlike(pairing, found))]
    return tuple(filter(None, parts))


def uncompared(pairing: Pairing, found: Mapping[str, Examined]) -> list[Finding]:
    """Return which images could not be compared, for the fault of their originals."""
    names = tuple(
        name
        for name in pairing.images.names
        if pairing.partner(name) is not None and name in found and found[name].comparison is None
    )
    count = len(pairing.images.names)
    text = f"{len(names)} of {count} images have an original that cannot be read, and were not compared"
    return _if_any(f"{text}: {first_few(names, SHOWN)}", names)


def colours(pairing: Pairing, found: Mapping[str, Examined], *, convert_profiles: bool) -> list[Finding]:
    """Return which images have a colour profile that is not sRGB, and which another than their originals."""
    other: dict[str, list[str]] = {}
    changed: dict[str, list[str]] = {}
    for name in pairing.images.names:
        if name not in found:
            continue
        facts, original = found[name].facts, found[name].original
        if facts.other_colours and not convert_profiles:
            other.setdefault(repr(facts.profile), []).append(name)
        if original is None or (facts.profile == original.profile):
            continue
        if facts.other_colours or original.other_colours:
            there, here = original.profile or "none", facts.profile or "none"
            changed.setdefault(f"{there!r} in original_art and {here!r} here", []).append(name)
    count = len(pairing.images.names)
    findings = [
        Finding(
            f"the colour profile {profile}, which is not sRGB and is ignored, in {len(names)} of {count} "
            f"images: {first_few(names, SHOWN)}; --convert-profiles brings all to sRGB",
            tuple(names),
        )
        for profile, names in other.items()
    ]
    findings += [
        Finding(
            f"another colour profile than the originals, {profiles}, in {len(names)} of {count} images: "
            f"{first_few(names, SHOWN)}; the sets may differ in colour, and not by the method alone",
            tuple(names),
        )
        for profiles, names in changed.items()
    ]
    return findings


def described_images(
    pairing: Pairing, captions: Captions | None, reading: Reading
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what training_run.json records about each image, and the marks of the set."""
    (found,) = examine([pairing], reading=reading).found
    records = image_records(pairing.images, captions)
    for record in records:
        record |= image_facts(pairing, record["name"], found.get(record["name"]))
    return records, list(marks(pairing, found))


def image_facts(pairing: Pairing, name: str, found: Examined | None) -> dict[str, Any]:
    """Return what records and plans say of an image, beside its file; None for what is not known."""
    facts, comparison = (found.facts, found.comparison) if found is not None else (None, None)
    return {
        "stem": pairing.images.stem(name),
        "original": pairing.partner(name),
        "paired_by": pairing.rule(name),
        **{key: getattr(facts, key, None) for key in ("width", "height", "mode", "format", "profile")},
        **{key: getattr(comparison, key, None) for key in ("psnr", "linf", "likeness")},
        "original_fit": None if comparison is None else comparison.fit,
    }


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
