"""Report on a study: the program `mimicry report`.

mimicry report --output report
"""

from pathlib import Path
from typing import Any

import click

from mimicry.report.content import read_content
from mimicry.report.writing import INDEX, REPORT_JSON, refuse_foreign_folder, write_page, write_tables
from mimicry.study import StudyTree
from mimicry.tuning.options import condition_filters, option, program, selection_options, tree_options
from mimicry.tuning.planning import AdapterFilter
from mimicry.tuning.stacks import Stack

_REPORT = "Report"


@program("report")
@tree_options
@condition_filters
@selection_options
@option(
    "--output",
    topic=_REPORT,
    type=click.Path(path_type=Path),
    default=Path("report"),
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
def report(output: Path, title: str, paintings: int, samples: int, **parameters: Any) -> int:
    """Report on the study: what each condition does to the evaluation loss, how sure that is, and pictures.

    The page opens from disk, without a network; send its folder as a whole. The original art without
    protection is always part of it, since everything is compared with that.
    Adapters of other recipes are shown apart. Nothing in the study is changed.
    """
    tree, stack = StudyTree(parameters["data_root"]), Stack.find(parameters["stack"])
    refuse_foreign_folder("--output", output, REPORT_JSON)
    content = read_content(tree, stack, AdapterFilter.of(parameters))
    write_tables(output, content)
    write_page(output, content, title=title, paintings=paintings, samples=samples)
    print(output / INDEX)
    return 0
