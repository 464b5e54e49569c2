"""The report: one HTML file about one run, complete in itself.

    RUN/config.yaml, {metrics, unusable}.jsonl, commands.txt, eval/*/{gallery, faiss}.json, collect(RUN)
        -> a section a measure: tables and charts -> templates/report.html.j2 -> one page

Nothing comes from outside, so that it reads the same from a disk, a mail and an archive. Every number
that was measured carries the name of its metric in `results.json` (`data-metric`, `data-field`), what
comes from elsewhere the name of that file (`data-source`). Captions are strangers' text: the template
escapes everything but the charts, and secrets are taken out of the configuration and the commands.
The same run folder gives the same bytes.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from mmalign.core.commit import write_atomic
from mmalign.core.config import read_yaml, write_yaml
from mmalign.core.errors import UserError
from mmalign.core.record import read_records
from mmalign.core.redact import redact, redact_text
from mmalign.data.stream.ledger import UNUSABLE
from mmalign.report.faiss_section import faiss_sections, faiss_tables
from mmalign.report.headline import headline
from mmalign.report.language_sections import alignments, dictionaries, geometries, layer_plots
from mmalign.report.lexical_section import lexical_plots
from mmalign.report.measurement import UNTRAINED, Measurement, look_up
from mmalign.report.picture_sections import classifications, retrievals
from mmalign.report.rendering import render
from mmalign.report.training_section import (
    captions_seen,
    draw_progress,
    draw_training,
    training_facts,
    unusable_samples,
)
from mmalign.report.transfer_section import transfers
from mmalign.results.collect import collect
from mmalign.results.results import Results


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
    page = render(
        "report.html.j2",
        config=config,
        config_text=write_yaml(config),
        commands=_read_commands(run / "commands.txt"),
        facts=training_facts(config, records),
        curves=draw_training(records),
        unusable=unusable_samples(records, read_records(run / UNUSABLE)),
        progress=draw_progress(records),
        results=results,
        has_untrained=UNTRAINED in results.baselines,
        tiles=headline(results),
        retrievals=retrievals(results, captions_seen(records)),
        classifications=classifications(results),
        alignments=alignments(results),
        geometries=geometries(results),
        layer_plots=layer_plots(results),
        dictionaries=dictionaries(results),
        lexical_plots=lexical_plots(results),
        galleries=_read_galleries(run),
        transfers=transfers(results),
        faiss=faiss_sections(run),
        faiss_tables=faiss_tables(results),
        groups=_grouped(results),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page)


def _grouped(results: Results) -> list[tuple[str, list[Measurement]]]:
    """All metrics, by measure and subject."""
    groups: dict[str, list[Measurement]] = defaultdict(list)
    for name in sorted(results.metrics):
        measured = look_up(results, name)
        assert measured is not None
        groups["/".join(name.split("/")[:2])].append(measured)
    return list(groups.items())


def _read_galleries(run: Path) -> list[dict[str, Any]]:
    """The galleries of all suites, each with its place in the run folder.

    Raises:
        UserError: a file that is no gallery.
    """
    galleries = []
    for path in sorted(run.glob("eval/*/gallery.json")):
        try:
            gallery = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{path}: not JSON; `mmalign eval` writes it anew") from None
        galleries.append({**gallery, "source": path.relative_to(run).as_posix()})
    return galleries


def _read_commands(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [redact_text(line) for line in lines if line.strip()]
