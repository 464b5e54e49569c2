"""A comparison as a person reads it, and as files for others.

Comparison -> terminal (rich), or Markdown where there is none
           -> FILE.md, FILE.csv, FILE.json
"""

import csv
import io
import sys
from dataclasses import asdict
from pathlib import Path

from mmalign.core.commit import write_atomic, write_json
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.results.comparison.compare import Comparison
from mmalign.results.comparison.differences import Difference, Row

SUFFIXES = (".json", ".csv", ".md")


def show(comparison: Comparison) -> None:
    """Print the table and the sentences about it."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(markdown(comparison)))
    else:
        say(markdown(comparison))


def check_target(path: Path) -> None:
    """Stop before any work if `write_comparison` could not write this file.

    Raises:
        UserError: another suffix than those that are known.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: give --out a file that ends in {', '.join(SUFFIXES)}")


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the comparison as JSON, CSV or Markdown, by the file's suffix.

    Raises:
        UserError: another suffix.
    """
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        write_json(path, asdict(comparison))
    else:
        write_atomic(path, csv_text(comparison) if path.suffix == ".csv" else markdown(comparison))


def markdown(comparison: Comparison) -> str:
    """A Markdown table, and the sentences below it."""
    first, *others = comparison.models
    titles = ["metric", "n", "chance", first, *(t for o in others for t in (o, f"{o} - {first}"))]
    rule = ["---", *["---:"] * (len(titles) - 1)]
    # A bar within a cell would end it.
    lines = [
        f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
        for cells in (titles, rule, *map(_cells, comparison.rows))
    ]
    return "\n".join([*lines, "", *comparison.words, ""])


def csv_text(comparison: Comparison) -> str:
    """One line per metric, numbers in full; what is not known is empty."""
    first, *others = comparison.models
    suffixes = ("", ", low", ", high", ", p", ", p (Holm)")
    of_others = [f"{other} - {first}{suffix}" for other in others for suffix in suffixes]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", "count", "chance", *comparison.models, *of_others])
    for row in comparison.rows:
        numbers = [
            number
            for one in row.differences
            for number in (one.value, *(one.ci95 or (None, None)), one.p, one.p_holm)
        ]
        writer.writerow([row.metric, row.count, row.chance, *row.values, *numbers])
    return text.getvalue()


def _cells(row: Row) -> list[str]:
    chance = "" if row.chance is None else f"{row.chance:.4f}"
    first, *others = row.values
    cells = [row.metric, f"{row.count:,}", chance, f"{first:.4f}"]
    for value, difference in zip(others, row.differences, strict=True):
        cells += [f"{value:.4f}", _words_of(difference)]
    return cells


def _words_of(one: Difference) -> str:
    if one.ci95 is None or one.p_holm is None:
        return f"{one.value:+.4f}"
    low, high = one.ci95
    # More digits would depend on the draws.
    p = "p < 0.001" if one.p_holm < 0.001 else f"p = {one.p_holm:.3f}"
    return f"{one.value:+.4f} ({low:+.4f} to {high:+.4f}), {p}"
