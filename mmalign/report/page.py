"""The report: one self-contained HTML file about one run.

    RUN/config.yaml, {metrics, unusable}.jsonl, commands.txt, eval/*/{gallery, faiss}.json, collect(RUN)
        -> declared sections: tables and charts -> templates/report.html.j2 -> one page

Nothing is loaded from outside. Every measured number carries the name of its metric in `results.json`
(`data-metric`, `data-field`), what comes from elsewhere the name of that file (`data-source`). The same run
folder gives the same bytes.
"""

import base64
import json
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from mmalign.core.commit import write_atomic
from mmalign.core.config import read_yaml, write_yaml
from mmalign.core.errors import UserError
from mmalign.core.record import read_records
from mmalign.core.redact import redact, redact_text
from mmalign.data.stream.ledger import UNUSABLE
from mmalign.report import training
from mmalign.report.measurement import UNTRAINED, Measurement, measurements
from mmalign.report.rendering import render
from mmalign.report.sections import measured_sections
from mmalign.report.tables import Table, pivot
from mmalign.results.collect import collect
from mmalign.results.metric_names import MetricName
from mmalign.results.results import Results


def write_report(run: Path, out: Path) -> None:
    """Write the page about the run folder to the file `out`.

    Raises:
        UserError: not a run folder, or nothing was measured on it yet.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run folder, it has no config.yaml")
    # The page may be sent to anybody: no secret of the configuration or of a command is shown.
    config = redact(read_yaml(run / "config.yaml"))
    path = run / "commands.txt"
    commands = redact_text(path.read_text(encoding="utf-8")) if path.is_file() else ""
    records = read_records(run / "metrics.jsonl")
    results = collect(run)
    seen = training.captions_seen(records)
    sections = measured_sections(results, seen)
    page = render(
        "report.html.j2",
        kind="run report",
        config=config,
        config_text=write_yaml(config),
        commands=[line for line in commands.splitlines() if line.strip()],
        seen=seen,
        facts=training.training_facts(records),
        curves=training.draw_training(records),
        unusable=training.unusable_samples(records, read_records(run / UNUSABLE)),
        progress=training.draw_progress(records),
        results=results,
        has_untrained=UNTRAINED in results.baselines,
        tiles=[tile for tables in sections.values() for one in tables for tile in one["tiles"]],
        sections=sections,
        galleries=_read_all(run, "gallery.json", "queries"),
        faiss=_read_all(run, "faiss.json", "recommendations"),
        groups=_grouped(results),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page)


def _grouped(results: Results) -> dict[str, Table]:
    """All metrics, one table for each measure and subject."""
    groups: dict[str, dict[MetricName, Measurement]] = defaultdict(dict)
    for name, one in measurements(results, MetricName.parse).items():
        groups[f"{name.measure}/{name.subject}"][name] = one
    places = partial(pivot, place=lambda name: (str(name), "", "value"), noun="metric")
    return {group: places(of) for group, of in sorted(groups.items())}


def _read_all(run: Path, name: str, part: str) -> list[dict[str, Any]]:
    """The files of this name of all suites, each with its suite, its path in the run folder and its plot.

    Raises:
        UserError: a file that `mmalign eval` did not write.
    """
    found = []
    for path in sorted(run.glob(f"eval/*/{name}")):
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{path}: not JSON; run `mmalign eval` again to write it") from None
        if not isinstance(tree, dict) or part not in tree:
            raise UserError(f"{path}: has no `{part}`; run `mmalign eval` again to write it")
        # In base64 and shown as an image: nothing in it can run.
        plot = path.with_name("pareto.svg")
        tree["plot"] = base64.b64encode(plot.read_bytes()).decode() if plot.is_file() else None
        tree["source"], tree["suite"] = path.relative_to(run).as_posix(), path.parent.name
        found.append(tree)
    return found
