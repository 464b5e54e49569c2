"""The report: one HTML file about one run, complete in itself.

    RUN/config.yaml, metrics.jsonl, commands.txt, eval/*/gallery.json, collect(RUN)
        -> tables and charts -> templates/report.html.j2 -> one page

No scripts and nothing from outside, so that it reads the same from a disk, a mail and an archive.
Captions are strangers' text: the template escapes everything but the charts, and secrets are taken
out of the configuration and the commands. The same run folder gives the same bytes.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmalign.commit import write_atomic
from mmalign.config import read_yaml, write_yaml
from mmalign.errors import UserError
from mmalign.evaluation.names import MEAN, subjects
from mmalign.evaluation.results import Results
from mmalign.record import read_records
from mmalign.redact import redact, redact_text
from mmalign.report.charts import (
    BLUE,
    OCHRE,
    PLUM,
    Line,
    draw_bars,
    draw_curve,
    draw_heat_map,
    draw_shares,
)
from mmalign.report.collect import collect
from mmalign.report.tables import (
    DIRECTIONS,
    UNTRAINED,
    alignment_matrix,
    captions_seen,
    grouped,
    headline,
    recall_bars,
    recalls_at,
    retrieval_rows,
    transfers,
)

_CURVES = {"loss": "Loss", "temperature": "Temperature", "pairs_per_second": "Pairs per second"}
_DIRECTION_COLORS = dict(zip(DIRECTIONS, (BLUE, OCHRE), strict=True))


def write_report(run: Path, out: Path) -> None:
    """Write the page about the run folder to the file `out`.

    Raises:
        UserError: not a run folder, or nothing was measured on it yet.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run folder, it has no config.yaml")
    config = redact(read_yaml(run / "config.yaml"))
    records = read_records(run / "metrics.jsonl")
    results = collect(run)
    environment = Environment(
        loader=PackageLoader("mmalign.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "thousands": lambda number: f"{number:,}"}
    page = environment.get_template("report.html.j2").render(
        config=config,
        config_text=write_yaml(config),
        commands=_read_commands(run / "commands.txt"),
        facts=_training_facts(config, records),
        seen=captions_seen(records),
        curves=_draw_training(records),
        progress=_draw_progress(records),
        results=results,
        has_untrained=UNTRAINED in results.baselines,
        tiles=headline(results),
        directions=DIRECTIONS,
        retrievals=[_retrieval(results, one) for one in subjects(results.metrics, "retrieval")],
        alignments=_alignments(results),
        galleries=_read_galleries(run),
        transfers=transfers(results),
        groups=grouped(results),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page)


def percent(share: float | None) -> str:
    """A share in percent with the digits that it needs, without the sign."""
    if share is None:
        return "–"
    return f"{100 * share:.1f}" if share >= 0.01 or share == 0 else f"{100 * share:.2g}"


def _training_facts(
    config: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the lead sentence says."""
    image, text = config["model"]["image"], config["model"]["text"]
    counts = captions_seen(records)
    _, speeds = _points(records, "pairs_per_second")
    return {
        "image": f"{image['name']}, {image['image_size']} px",
        "text": text["pretrained"] or text["architecture"]["model_type"],
        "text_pretrained": text["pretrained"] is not None,
        "step": max((record["step"] for record in records), default=None),
        "captions": max((record.get("pairs_seen", 0) for record in records), default=0),
        "languages": len(counts),
        "ends": {key: _ends(records, key) for key in ("loss", "temperature")},
        "speed": statistics.median(speeds) if speeds else None,
    }


def _ends(records: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float] | None:
    """The first and the last value in the records."""
    _, values = _points(records, key)
    return (values[0], values[-1]) if values else None


def _draw_training(records: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Small curves of what every step leaves in the records."""
    charts = []
    for key, title in _CURVES.items():
        if any(key in record for record in records):
            # Speed from 0 up: an axis cut to the noise would look like trouble.
            from_zero = key == "pairs_per_second"
            line = Line(*_points(records, key))
            charts.append(draw_curve(f"curve-{key}", title, line, from_zero))
    return charts


def _points(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the records that have the key."""
    having = [record for record in records if key in record]
    return [record["step"] for record in having], [record[key] for record in having]


def _draw_progress(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """(set or task, chart) of the means measured while training, at the lowest and highest k."""
    names = sorted({name for record in records for name in record if f"/{MEAN}/" in name})
    charts = []
    for subject in sorted({name.split("/")[1] for name in names}):
        ends = {
            name.partition(f"/{MEAN}/")[2]: name for name in names if name.split("/")[1] == subject
        }
        ks = sorted({int(end.rpartition("@")[2]) for end in ends if "recall@" in end})
        between = {f"recall@{k}" for k in ks[1:-1]}
        lines = [
            _line_of_measure(records, name, end)
            for end, name in sorted(ends.items(), key=lambda item: _place_in_legend(item[0]))
            if end.rpartition("/")[2] not in between
        ]
        charts.append((subject, draw_shares(f"progress-{subject}", f"Means on {subject}", lines)))
    return charts


def _place_in_legend(end: str) -> tuple[bool, bool, str]:
    return "text_to_image" not in end, "image_to_text" not in end, end


def _line_of_measure(records: Sequence[Mapping[str, Any]], name: str, end: str) -> Line:
    steps, values = _points(records, name)
    direction, _, metric = end.rpartition("/")
    label = f"{DIRECTIONS.get(direction, direction)} {metric}".strip()
    color = _DIRECTION_COLORS.get(direction, PLUM)
    return Line(steps, values, label, color, dashed="recall" in end and not end.endswith("@1"))


def _retrieval(results: Results, subject: str) -> dict[str, Any]:
    """A retrieval section: chart, table and how many languages they have."""
    bars = recall_bars(results, subject)
    rows = retrieval_rows(results, subject)
    mean = dict(rows).get("mean", {})
    at_first = [
        one.chance for (_, k), one in mean.items() if k == 1 and one and one.chance is not None
    ]
    chance = sum(at_first) / len(at_first) if at_first else None
    title = f"recall@1 on {subject} for {len(bars)} languages, both directions"
    return {
        "subject": subject,
        "chart": draw_bars(f"recall-{subject}", bars, chance, title) if bars else None,
        "chance": chance,
        "ks": recalls_at(results, subject),
        "rows": rows,
        "languages": len(bars),
    }


def _alignments(results: Results) -> list[dict[str, Any]]:
    sections = []
    for subject in subjects(results.metrics, "alignment"):
        matrix = alignment_matrix(results, subject)
        if matrix:
            title = f"bitext@1 on {subject} between {len(matrix.shown)} languages"
            chart = draw_heat_map(f"alignment-{subject}", matrix.shown, matrix.cells, title)
            sections.append({"subject": subject, "matrix": matrix, "chart": chart})
    return sections


def _read_galleries(run: Path) -> list[dict[str, Any]]:
    """The galleries of all suites.

    Raises:
        UserError: a file that is no gallery.
    """
    galleries = []
    for path in sorted(run.glob("eval/*/gallery.json")):
        try:
            galleries.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            raise UserError(f"{path}: not JSON; `mmalign eval` writes it anew") from None
    return galleries


def _read_commands(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [redact_text(line) for line in lines if line.strip()]
