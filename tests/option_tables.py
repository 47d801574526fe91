"""The options, and the keys of study.toml, as tables for the documents, in Markdown."""

from collections.abc import Sequence
from typing import Any

from mimicry.report.columns import Column
from mimicry.tuning.options.config import OPTIONS
from mimicry.tuning.options.declarations import Option
from mimicry.tuning.options.study_file import SAMPLE_KEYS, STUDY_KEYS


def readme_table() -> str:
    """Return the README's table of the main hyper-parameters, as Markdown."""
    rows = ["| Parameter | Default | Rationale |", "|---|---|---|"]
    for option in OPTIONS:
        if option.facts.rationale:
            rows.append(f"| `{option.flag}` | {_shown_default(option)} | {option.facts.rationale} |")
    return "\n".join(rows)


def _shown_default(option: Option) -> str:
    if option.type is bool:
        return "enabled" if option.default else "disabled"
    if option.name == "learning_rate":
        return f"{option.default:.0e}".replace("e-0", "e-")
    return f'`"{option.default}"`' if " " in str(option.default) else str(option.default)


def options_document() -> str:
    """Return the tables of docs/options.md: every hyper-parameter by topic, with default and meaning."""
    lines: list[str] = []
    for topic in dict.fromkeys(option.topic for option in OPTIONS):
        lines += [f"## {topic}", "", "| Option | Default | Recipe | Meaning |", "|---|---|---|---|"]
        for option in OPTIONS:
            if option.topic == topic:
                default = "none" if option.default is None else _shown_default(option)
                recipe = "yes" if option.facts.in_recipe else ""
                text = option.facts.help.replace("|", "\\|")
                lines.append(f"| `{option.flag}` | {default} | {recipe} | {text} {_allowed(option)}|")
        lines.append("")
    return "\n".join(lines).rstrip()


def _allowed(option: Option) -> str:
    if option.facts.choices:
        return f"One of {', '.join(f'`{choice}`' for choice in option.facts.choices)}. "
    is_bounded = option.facts.minimum is not None or option.facts.above is not None
    return f"Takes {option.bounds}. " if is_bounded else ""


def study_file_table() -> str:
    """Return the table of docs/study_file.md: the keys of [study] and [samples], with what they take."""
    lines = ["| Table | Key | Meaning |", "|---|---|---|"]
    for table, keys in (("study", STUDY_KEYS), ("samples", SAMPLE_KEYS)):
        for name, key in keys.items():
            several = "A list. " if key.is_list else ""
            text = f"{key.option.facts.help} {several}{_allowed(key.option)}"
            lines.append(f"| `[{table}]` | `{name}` | {text.rstrip()} |")
    return "\n".join(lines)


def columns_document(columns: Sequence[Column[Any]]) -> str:
    """Return the columns as a table for docs/report.md."""
    lines = ["| column | unit | meaning |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{each.name}` | {each.unit} | {each.meaning} |" for each in columns)])
