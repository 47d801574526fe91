"""Report on a study: the program `mimicry report`.

mimicry report --output report
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mimicry.common.errors import UsageError
from mimicry.report.content import Content, read_content
from mimicry.report.grids import GridMaker
from mimicry.report.rating_pack import (
    KEY,
    PACK,
    choose_pairs,
    pairs_of,
    read_scores,
    score_table,
    write_rating_pack,
)
from mimicry.report.writing import INDEX, refuse_foreign_folder, write_page, write_tables
from mimicry.tuning.options.click_options import (
    condition_filters,
    option,
    program,
    selection_options,
    tree_options,
)
from mimicry.tuning.options.study_defaults import study_file_of
from mimicry.tuning.status.next_command import DEFAULT_REPORT, REPORT_JSON

_REPORT, _RATING = "Report", "Human ratings"


@program("report")
@tree_options
@condition_filters
@selection_options
@option(
    "--output",
    topic=_REPORT,
    type=click.Path(path_type=Path),
    default=DEFAULT_REPORT,
    help="Folder to write: index.html, tables as CSV and LaTeX, and all of it as JSON.",
)
@option("--title", topic=_REPORT, default="Style mimicry study", help="Title of the page.")
@option(
    "--paintings",
    topic=_REPORT,
    type=click.IntRange(0, 100),
    default=2,
    help="How many paintings of each artist the page shows.",
)
@option(
    "--samples",
    topic=_REPORT,
    type=click.IntRange(0, 1000),
    default=4,
    help="How many prompts and seeds it shows of each artist's samples.",
)
@option(
    "--rating-pack",
    topic=_RATING,
    type=click.Path(path_type=Path),
    help="Write a pack for raters into this new folder, in place of the report: pairs of samples of the "
    "original art and of another condition. Give them pack/ and keep key.csv.",
)
@option(
    "--rating-pairs",
    topic=_RATING,
    type=click.IntRange(1, 10_000),
    default=100,
    help="How many pairs it has at most, as many of each condition as there are.",
)
@option(
    "--rating-seed",
    topic=_RATING,
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    help="Seed of the choice, order and sides.",
)
@option(
    "--rating-answers",
    topic=_RATING,
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    help="Answers that a rater has saved; score them by the key in the folder of --rating-pack. "
    "May be repeated.",
)
@click.pass_context
def report(
    context: click.Context, /, output: Path, title: str, paintings: int, samples: int, **parameters: Any
) -> int:
    """Report on the study: what each condition does to the evaluation loss, how sure that is, and pictures.

    The page opens from disk, without a network; send its folder as a whole. The original art without
    protection is always part of it, since everything is compared with that.
    Adapters of other recipes are shown apart. Nothing in the study is changed.
    """
    pack, answers = parameters["rating_pack"], parameters["rating_answers"]
    if answers:
        if pack is None:
            raise UsageError("--rating-answers needs --rating-pack, the folder with the key of these answers")
        print(score_table(read_scores(pack / KEY, answers)))
        return 0
    if pack is None:
        refuse_foreign_folder("--output", output, REPORT_JSON)
    content = read_content(parameters, study_file_of(context))
    if pack is not None:
        return _write_rating_pack(pack, content, paintings, parameters)
    write_tables(output, content)
    write_page(output, content, title=title, paintings=paintings, samples=samples)
    print(output / INDEX)
    return 0


def _write_rating_pack(pack: Path, content: Content, paintings: int, parameters: Mapping[str, Any]) -> int:
    group, seed = content.main.group, parameters["rating_seed"]
    maker = GridMaker(content.tree, group, paintings=paintings, samples=sys.maxsize)
    pairs = pairs_of(maker.grid(artist) for artist in group.artists)
    chosen = choose_pairs(pairs, parameters["rating_pairs"], seed)
    write_rating_pack(pack, chosen, seed)
    print(f"{len(chosen)} of {len(pairs)} pairs; give raters {pack / PACK}, and keep {pack / KEY}")
    return 0
