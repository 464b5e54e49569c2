"""How a model was trained and on what, from its lineage and its resolved configuration.

    lineage.json's tree -> data sets, captions by language, licences, code
    configuration       -> sentences: objective, batch, precision, or the fine-tuning and its labels

A fine-tuned tower has a parent; its data sets and languages count here too. Every field may be absent, and
what is absent is not spoken of.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmalign.core.languages import labelled
from mmalign.export.markdown import listed, one_line, plain, table
from mmalign.export.source import Source

_SHOWN = 12  # digits of a sha256
_LOSSES = {
    "softmax": "softmax (CLIP, arXiv 2103.00020)",
    "sigmoid": "sigmoid (SigLIP, arXiv 2303.15343)",
}


def trained_languages(lineage: dict[str, Any]) -> dict[str, int]:
    """Captions by language over all training sets, of the model and of those it came from."""
    total: Counter[str] = Counter()
    for one in _data_sets(lineage):
        total.update(one.get("languages") or {})
    return dict(sorted(total.items()))


def data_table(lineage: dict[str, Any]) -> str:
    """A row a training set; the empty text where none is known."""
    columns = ("set", "split", "pictures", "captions", "languages", "licences", "manifest (sha256)")
    rows = [_data_row(one) for one in _data_sets(lineage)]
    return table(columns, rows) if rows else ""


def caption_table(lineage: dict[str, Any]) -> str:
    """Captions in training, a row a language; the empty text where they are not known."""
    rows = [[labelled(code), f"{count:,}"] for code, count in trained_languages(lineage).items()]
    return table(("language", "captions"), rows) if rows else ""


def how_trained(source: Source) -> list[str]:
    """Sentences in Markdown, from fields that are there."""
    first, *before = list(_lineages(source.lineage)) or [{}]
    lines = [*_generation(source.config, first), _code(first)]
    for one in before:
        lines += [f"Before that: {line}" for line in _generation(one.get("config") or {}, one)]
    return [line for line in [*lines, _base(source)] if line]


def _generation(config: dict[str, Any], lineage: dict[str, Any]) -> list[str]:
    """What one training did, of a model or of one that it came from."""
    how = _injection(config) or _fine_tuning(config)
    lines = [_objective(config), how, _size(config, lineage.get("run") or {})]
    return [line for line in lines if line]


def fine_tuned_on(config: dict[str, Any]) -> str | None:
    """The task or the lexicon of a fine-tuning, None of any other training."""
    return (config.get("task") or config.get("lexicon") or {}).get("name")


def is_masked(config: dict[str, Any]) -> bool:
    """Whether the run predicted hidden words and never looked at pictures."""
    return (config.get("objective") or {}).get("kind") == "masked_language_model"


def _lineages(lineage: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The model's own lineage, then its parent's, and so on."""
    now: Any = lineage
    while isinstance(now, dict) and now:
        yield now
        now = now.get("parent")


def _data_sets(lineage: dict[str, Any]) -> list[dict[str, Any]]:
    """The sets of all generations; one that was used twice (the same manifest) once."""
    sets: dict[str, dict[str, Any]] = {}
    for one in _lineages(lineage):
        for data in one.get("data") or ():
            if "manifest_sha256" in data:  # not the files of a text task
                sets.setdefault(data["manifest_sha256"], data)
    return list(sets.values())


def _data_row(one: dict[str, Any]) -> list[str]:
    return [
        one_line(one.get("name") or ""),
        one_line(one.get("split") or ""),
        _count(one.get("samples")),
        _count(one.get("captions")),
        _count(len(one.get("languages") or {}) or None),
        _licences(one.get("licenses") or {}),
        one["manifest_sha256"][:_SHOWN],
    ]


def _licences(samples: dict[str, int]) -> str:
    """Licences with how many samples bear each."""
    return ", ".join(f"{name} ({count:,})" for name, count in sorted(samples.items()))


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _objective(config: dict[str, Any]) -> str:
    objective = config.get("objective") or {}
    if is_masked(config):
        share = f" (a share of {objective['share']})" if objective.get("share") else ""
        return (
            f"Objective: predict hidden tokens of captions{share} (BERT, arXiv 1810.04805), "
            "without pictures."
        )
    if objective.get("kind") != "contrastive":
        return ""
    between = objective.get("text_text")
    loss = _LOSSES.get(objective.get("loss", ""), "contrastive")
    parts = [
        f"Objective: captions meet the pictures that they describe, {loss} loss over the whole batch",
        f"and other captions of the same picture, weight {between}" if between else "",
        f"label smoothing {objective['label_smoothing']}"
        if objective.get("label_smoothing")
        else "",
    ]
    return f"{', '.join(part for part in parts if part)}."


def _fine_tuning(config: dict[str, Any]) -> str:
    if not (name := fine_tuned_on(config)):
        return ""
    line, task = f"Fine-tuned on {plain(name)}", config["task"]
    if task.get("language"):
        line += f", labels in {plain(labelled(task['language']))} only"
    method = (config.get("method") or {}).get("kind")
    line += f", method {plain(method)}." if method else "."
    if config.get("trainable") == "head":
        line += " Only a head was trained, which is not in this folder; the tower is as it was."
    return line


def _injection(config: dict[str, Any]) -> str:
    """A lexical injection in words; the empty text of any other training."""
    if not (lexicon := config.get("lexicon")):
        return ""
    loss = (config.get("loss") or {}).get("kind")
    parts = [
        "Targeted lexical injection (arXiv 2506.15415)",
        f"settings: {plain(config['protocol'])}" if config.get("protocol") else "",
        f"words of {plain(lexicon['name'])} drawn to their translations at one layer by low-rank adapters",
        f"loss {plain(loss)}" if loss else "",
    ]
    return f"{', '.join(part for part in parts if part)}."


def _size(config: dict[str, Any], run: dict[str, Any]) -> str:
    """Steps, batch, captions seen, precision, processes."""
    precision = (config.get("engine") or {}).get("precision")
    steps = run.get("steps") or config.get("steps")
    told = [
        f"{steps:,} steps" if steps else "",
        f"{config['epochs']:,} epochs" if config.get("epochs") else "",
        f"batches of {config['batch_size']:,}" if config.get("batch_size") else "",
        f"{run['pairs_seen']:,} captions seen" if run.get("pairs_seen") else "",
        f"precision {plain(precision)}" if precision else "",
        f"processes: {run['world_size']:,}" if run.get("world_size") else "",
    ]
    said = ", ".join(one for one in told if one)
    return f"Size: {said}." if said else ""


def _base(source: Source) -> str:
    towers = []
    if text := base_model(source):
        towers.append(f"text tower {plain(text)}")
    for one in _lineages(source.lineage):
        if image := (one.get("base_models") or {}).get("image"):
            known = [image[name] for name in ("library", "name", "weights") if image.get(name)]
            towers.append(f"image tower {plain(' '.join(known))}")
    return f"Started from pretrained weights: {listed(towers)}." if towers else ""


def base_model(source: Source) -> str | None:
    """The hub's name of the text tower that training started from, unless it is somebody's folder."""
    for one in _lineages(source.lineage):
        name = (one.get("base_models") or {}).get("text")
        if isinstance(name, str) and _is_name(name):
            return name
    return None


def _is_name(name: str) -> bool:
    """Whether it has the form of a name on the hub and is no folder here."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not Path(name).exists()


def _code(lineage: dict[str, Any]) -> str:
    code = lineage.get("code") or {}
    if not code.get("version"):
        return ""
    commit = f", commit {plain(code['commit'])}" if code.get("commit") else ""
    dirty = ", with changes that were not committed" if code.get("dirty") else ""
    return f"Code: mmalign {plain(code['version'])}{commit}{dirty}."
