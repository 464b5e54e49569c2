"""The FAISS benchmark on the page: what it recommends, its plot, and what indexes cost the task.

RUN/eval/<suite>/faiss.json, pareto.svg; faiss/<set>/<index>/<language>/<direction>/recall@<k> -> section
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmalign.core.errors import UserError
from mmalign.report.headline import DIRECTIONS
from mmalign.report.measurement import look_up
from mmalign.report.tables import Column, Row, Table, count_column, third_parts
from mmalign.results.metric_names import MEAN, subjects
from mmalign.results.results import Results


@dataclass(frozen=True)
class FaissSection:
    """One suite.

    Attributes:
        source: `faiss.json` relative to the run folder.
        plot: `pareto.svg` in base64; shown as a picture, so that nothing in it can run.
    """

    suite: str
    source: str
    recommendations: list[str]
    plot: str | None


def faiss_sections(run: Path) -> list[FaissSection]:
    """What the suites of a run folder recommend.

    Raises:
        UserError: a file that is not what the benchmark writes.
    """
    return [_read(path, run) for path in sorted(run.glob("eval/*/faiss.json"))]


def faiss_tables(results: Results) -> list[tuple[str, Table]]:
    """(set, table): recall of the task by index, mean over the languages."""
    return [(one, _table(results, one)) for one in subjects(results.metrics, "faiss")]


def _read(path: Path, run: Path) -> FaissSection:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))["recommendations"]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: has no `recommendations`; `mmalign eval` with a FAISS suite writes it anew"
        ) from None
    plot = path.with_name("pareto.svg")
    return FaissSection(
        suite=path.parent.name,
        source=path.relative_to(run).as_posix(),
        recommendations=[str(sentence) for sentence in said],
        plot=base64.b64encode(plot.read_bytes()).decode() if plot.is_file() else None,
    )


def _table(results: Results, subject: str) -> Table:
    head = f"faiss/{subject}"
    tails = [name.partition(f"/{MEAN}/")[2] for name in results.metrics if name.startswith(head)]
    ks = sorted({int(tail.rpartition("@")[2]) for tail in tails if "/recall@" in tail})
    columns = [
        Column(f"@{k}", ((head, f"{MEAN}/{direction}/recall@{k}"),), group=words)
        for direction, words in DIRECTIONS.items()
        for k in ks
    ]
    columns.append(count_column([path for column in columns for path in column.paths]))
    rows = [_row(results, columns, label) for label in third_parts(results, "faiss", subject)]
    return Table("index", columns, [], rows)


def _row(results: Results, columns: Sequence[Column], label: str) -> Row:
    found = [[look_up(results, f"{a}/{label}/{b}") for a, b in one.paths] for one in columns]
    return Row(label, label, [[one for one in ones if one][:1] for ones in found])
