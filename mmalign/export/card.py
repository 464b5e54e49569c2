"""The model card: README.md with front matter for the hub, from measured facts only.

    Encoder, Results, run configuration -> templates/<library>.md.j2, card.md.j2 -> README.md

What was not measured or not given does not appear.
"""

import re
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from mmalign.commit import write_atomic
from mmalign.config import write_yaml
from mmalign.evaluation.encoder import Encoder
from mmalign.evaluation.names import MEAN, languages, subjects
from mmalign.evaluation.results import Results
from mmalign.redact import redact

DIRECTIONS = ("text_to_image", "image_to_text")


def write_card(
    encoder: Encoder,
    folder: Path,
    title: str,
    loader: str | None,
    results: Results | None,
    run_config: dict[str, Any],
    license: str | None = None,
    library: Literal["sentence-transformers", "open_clip"] = "sentence-transformers",
    repo_id: str | None = None,
) -> None:
    """Write `folder/README.md`.

    Args:
        title: name of the model, the card's heading.
        loader: the class of transformers that loads the trunk; none: the folder has no trunk by itself.
        license: identifier of the licence; none: the card names none.
        library: whose format the folder has.
        repo_id: name on the hub that the folder was written for.
    """
    environment = Environment(
        loader=PackageLoader("mmalign.export"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Markdown, not HTML: nothing that a stranger wrote (captions) goes in.
        autoescape=False,
    )
    codes = _all_languages(results)
    text = environment.get_template(f"{library}.md.j2").render(
        title=title,
        loader=loader,
        repo_id=repo_id,
        license=license,
        language=sorted({code.split("-")[0] for code in codes}),
        language_bcp47=codes if any("-" in code for code in codes) else [],
        base_model=_hub_name(encoder.config.text.pretrained),
        image=encoder.config.image,
        text=encoder.config.text,
        embedding=encoder.config.embedding,
        facts=encoder.facts,
        tables=[] if results is None else _tables(results),
        protocol={} if results is None else results.protocol,
        environment={} if results is None else results.environment,
        config=write_yaml(_without_folders(redact(run_config))),
    )
    write_atomic(folder / "README.md", text)


def _all_languages(results: Results | None) -> list[str]:
    names = [] if results is None else list(results.metrics)
    measures = ((m, subject) for m in ("retrieval", "text") for subject in subjects(names, m))
    return sorted({code for m, subject in measures for code in languages(names, m, subject)})


def _tables(results: Results) -> list[dict[str, Any]]:
    """One table a set or task: heading, columns, and rows of a language and its cells."""
    names = list(results.metrics)
    tables = []
    for subject in subjects(names, "retrieval"):
        metrics = [f"{direction}/recall@{k}" for direction in DIRECTIONS for k in (1, 10)]
        tables.append(_table(results, "retrieval", subject, metrics))
    for subject in subjects(names, "text"):
        ends = {n.split("/", 3)[3] for n in names if n.startswith(f"text/{subject}/")}
        # The untouched texts first, then what was done to them.
        metrics = sorted(ends, key=lambda end: (not end.startswith("clean/"), end))
        tables.append(_table(results, "text", subject, metrics))
    for subject in subjects(names, "alignment"):
        name = f"alignment/{subject}/{MEAN}/bitext@1"
        if name in results.metrics:
            row = [_percent(results.metrics[name]), str(results.counts[name])]
            columns = ["languages", "bitext@1", "n"]
            tables.append(
                {"heading": f"alignment: {subject}", "columns": columns, "rows": [["mean", *row]]}
            )
    return tables


def _table(results: Results, measure: str, subject: str, metrics: list[str]) -> dict[str, Any]:
    rows = []
    for code in [*languages(results.metrics, measure, subject), MEAN]:
        names = [f"{measure}/{subject}/{code}/{metric}" for metric in metrics]
        counts = {results.counts[name] for name in names if name in results.metrics}
        if counts:
            cells = [_percent(results.metrics.get(name)) for name in names]
            rows.append([code, *cells, "/".join(str(count) for count in sorted(counts))])
    columns = [
        "language",
        *(metric.replace("_", " ").replace("/", ", ") for metric in metrics),
        "n",
    ]
    return {"heading": f"{measure}: {subject}", "columns": columns, "rows": rows}


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _hub_name(pretrained: str | None) -> str | None:
    """The name of the base model, unless it is a folder of this machine."""
    if pretrained is None or Path(pretrained).exists():
        return None
    return pretrained if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", pretrained) else None


def _without_folders(tree: Any) -> Any:
    """Of absolute paths only the last name: how somebody's disk is laid out stays private."""
    if isinstance(tree, dict):
        return {key: _without_folders(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_folders(value) for value in tree]
    is_path = isinstance(tree, str) and tree.startswith(("/", "~"))
    return f".../{Path(tree).name}" if is_path else tree
