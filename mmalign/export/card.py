"""The model card: README.md with front matter for the hub, from measured and recorded facts only.

    Source -> facts, in one dictionary -> templates/card.md.j2, which holds all sentences -> README.md
           -> ModelCardData            -> the front matter: languages, licence, model-index

The same source gives the same card, wherever the folder lies.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import open_clip
import timm
from huggingface_hub import ModelCardData
from jinja2 import ChainableUndefined, Environment, PackageLoader
from torch import nn

from mmalign.core.commit import write_atomic
from mmalign.core.config import write_yaml
from mmalign.core.languages import labelled
from mmalign.core.redact import redact
from mmalign.export.licenses import NOTICE, License, conditions, data_sets, generations
from mmalign.export.markdown import code_block, listed, one_line, percents_apart, plain, prose
from mmalign.export.measurements import Measurement, eval_results, measurements
from mmalign.export.sentence_transformers import auto_class, dense_layers
from mmalign.export.short_vectors import FILE as SIZES
from mmalign.export.source import Source, without_folders
from mmalign.models.encoder import Encoder
from mmalign.models.image_tower import TimmTower
from mmalign.models.pooling import POOLINGS
from mmalign.results.formatting import percent
from mmalign.results.metric_names import ALL, MEAN, WORST5, is_aggregate, known_languages
from mmalign.results.protocol import sentence

TEXTS_ONLY = "sentence-transformers"
PLACE = "path/to/this/folder"  # what the snippets load where the folder has no name on the hub
# Format -> the hub's name of the library, and further tags.
_LIBRARIES = {
    TEXTS_ONLY: ("sentence-transformers", "feature-extraction", "transformers"),
    "sentence-transformers-router": ("sentence-transformers", "feature-extraction"),
    "transformers": ("transformers", "vision-text-dual-encoder"),
    "open_clip": ("open_clip", "clip"),
    "onnx": ("onnx",),
}
_PIPELINES = {"open_clip": "zero-shot-image-classification", "transformers": "feature-extraction"}
_HUB_METRICS = {"recall": "recall", "accuracy": "accuracy", "bitext": "accuracy", "f1": "f1"}


def write_card(
    source: Source,
    folder: Path,
    formats: Sequence[str],
    title: str,
    license: License | None = None,
    repo_id: str | None = None,
) -> None:
    """Write `folder/README.md`.

    Args:
        folder: holds the exported files; the loss of 8-bit weights is read from there.
        formats: what the folder holds; the first one names the library in the front matter.
        repo_id: name on the hub that the folder was written for; none: the snippets load a folder.
    """
    environment = Environment(
        loader=PackageLoader("mmalign.export"),
        # Every part of a configuration or a lineage may be absent, at any depth.
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # No autoescape: this is Markdown. Untrusted text goes through `md`, `prose` or `e`, one by one.
    )
    quoted = partial(json.dumps, ensure_ascii=False)  # as Python writes a string
    filters = {"md": plain, "comma": "{:,}".format, "apart": percents_apart, "quoted": quoted}
    environment.filters |= filters
    environment.filters |= {
        one.__name__: one for one in (prose, listed, labelled, percent, sentence)
    }
    facts = _facts(source, formats, folder)
    facts |= {"title": title, "license": license, "repo_id": repo_id, "name": repo_id or PLACE}
    body = environment.get_template("card.md.j2").render(**facts)
    # The parts of the template that were left out leave empty lines behind.
    body = re.sub(r"\n{3,}", "\n\n", body)
    front = _metadata(source, formats, one_line(title), license, facts).to_yaml()
    write_atomic(folder / "README.md", f"---\n{front}\n---\n{body}")


def _metadata(
    source: Source,
    formats: Sequence[str],
    title: str,
    license: License | None,
    facts: dict[str, Any],
) -> ModelCardData:
    measured = known_languages(source.results.metrics) if source.results else ()
    codes = sorted(facts["captions"] or measured)
    # The hub takes ISO 639 codes of two or three letters here, without scripts and regions.
    bare = sorted({code.split("-")[0].lower() for code in codes})
    tags = [tag for name in formats for tag in _LIBRARIES[name]]
    tags += ["multilingual", "mmalign"] if len(codes) > 1 else ["mmalign"]
    found = eval_results(source.results) if source.results else []
    metrics = {_HUB_METRICS.get(one.metric_type.partition("_")[0]) for one in found}
    has_regions = any("-" in code for code in codes)
    return ModelCardData(
        language=[code for code in bare if re.fullmatch(r"[a-z]{2,3}", code)] or None,
        license=license and license.identifier,
        license_name=license and license.name,
        license_link=license and license.link,
        library_name=_LIBRARIES[formats[0]][0],
        pipeline_tag=_PIPELINES.get(formats[0], "sentence-similarity"),
        tags=list(dict.fromkeys(tags)),
        base_model=[base["hub"] for base in facts["bases"] if base["hub"]] or None,
        metrics=sorted(metric for metric in metrics if metric) or None,
        model_name=title if found else None,
        eval_results=found or None,
        **({"language_bcp47": codes} if has_regions else {}),  # type: ignore[arg-type]
    )


def _facts(source: Source, formats: Sequence[str], folder: Path) -> dict[str, Any]:
    """What the template writes about: the towers, what was measured, how they were trained."""
    tower, results = source.tower, source.results
    encoder = source.encoder if set(formats) != {TEXTS_ONLY} else None
    config = without_folders(redact(source.config))
    int8, sizes = folder / "onnx" / "config.json", folder / SIZES
    found = measurements(results) if results else []
    ancestors, sets = list(generations(source.lineage)), data_sets(source.lineage)
    trained = Counter[str]()
    for data in sets:
        trained.update(data.get("languages") or {})
    known = known_languages(results.metrics) if results else set()
    by_set = groupby((m for m in found if not m.of_pairs), lambda m: m.name.prefix)
    return {
        "formats": formats,
        "tower": tower,
        "pooling_code": POOLINGS[tower.pooling].code,
        "encoder": encoder,
        "image": encoder and encoder.model.image_tower,
        "has_pivot": source.encoder is not None,
        "by_timm": encoder is not None and isinstance(encoder.config.image, TimmTower),
        "loader": auto_class(tower.trunk).__name__ if TEXTS_ONLY in formats else None,
        "dense": [
            (f"{number}_Dense", "gelu" if isinstance(activation, nn.GELU) else None)
            for number, (_, activation) in enumerate(dense_layers(tower.projection), start=2)
        ],
        # What the 8-bit text tower costs, as `onnx_graphs.py` measured it.
        "int8": json.loads(int8.read_text(encoding="utf-8"))["int8"] if int8.is_file() else {},
        "sizes": json.loads(sizes.read_text(encoding="utf-8")) if sizes.is_file() else {},
        **_scores(source.encoder),
        "results": results if found else None,
        "measured": found,
        "headline": _headline(found),
        "tables": [_language_table(list(group)) for _, group in by_set],
        "never_measured": sorted(trained.keys() - known) if known else [],
        "not_trained": sorted(known - trained.keys()) if trained else [],
        "config": config,
        "config_block": code_block(write_yaml(config), "yaml") if config else "",
        "generations": ancestors,
        "bases": _bases(ancestors),
        "data": sets,
        "conditions": conditions(source.lineage),
        "has_notice": (folder / NOTICE).is_file(),
        "captions": dict(sorted(trained.items())),
    }


def _language_table(group: list[Measurement]) -> dict[str, Any]:
    """One row per aggregate and language, one column per measurement of the same set."""
    numbers = {part: one for m in group for part, one in m.numbers.items()}
    single = sorted(part for part in numbers if not is_aggregate(part))
    rows = []
    for part in (*(part for part in (MEAN, WORST5, ALL) if part in numbers), *single):
        cells = [m.numbers.get(part) for m in group]
        counts = dict.fromkeys(str(cell.count) for cell in cells if cell)
        shares = [cell.share if cell else None for cell in cells]
        rows.append({"label": numbers[part].label, "shares": shares, "n": "/".join(counts)})
    return {"columns": group, "name": group[0].name, "languages": len(single), "rows": rows}


def _scores(encoder: Encoder | None) -> dict[str, float | None]:
    """What turns a cosine into the score of training: `scale`, and `bias` of a sigmoid loss."""
    if encoder is None:
        return {"scale": None, "bias": None}
    scale, bias = encoder.model.logit_scale.exp().item(), encoder.model.logit_bias
    return {
        "scale": float(f"{scale:.6g}"),
        "bias": None if bias is None else float(f"{bias.item():.6g}"),
    }


def _bases(ancestors: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pretrained weights that training started from: `side`, `words`, `hub` (id or None), `revision`."""
    found: dict[str, dict[str, Any]] = {}
    for side, base in ((s, b) for a in ancestors for s, b in (a.get("base_models") or {}).items()):
        # A text tower of mmalign 0.1 and of a fine-tuning is recorded by its name alone.
        facts = {"name": base} if isinstance(base, str) else base or {}
        if not facts.get("name") or side in found:
            continue
        words = " ".join(
            str(facts[key]) for key in ("library", "name", "weights") if facts.get(key)
        )
        hub = _hub_id(facts)
        found[side] = {"side": side, "words": words, "hub": hub, "revision": facts.get("revision")}
    return sorted(found.values(), key=lambda one: one["side"], reverse=True)  # text first


def _hub_id(facts: dict[str, Any]) -> str | None:
    """The hub's name of pretrained weights; None: a folder, a URL, or not known."""
    name = str(facts["name"])
    if facts.get("library") == "timm":
        known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        return known.hf_hub_id if known and known.hf_hub_id else None
    if facts.get("library") == "open_clip":
        known = open_clip.get_pretrained_cfg(name, str(facts.get("weights"))) or {}
        return str(known["hf_hub"]).strip("/") if known.get("hf_hub") else None
    is_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not Path(name).exists()
    return name if is_name else None


def _headline(found: Sequence[Measurement]) -> list[Measurement]:
    """Of each kind of measurement the one with the most queries; five at most."""
    largest: dict[str, Measurement] = {}
    for one in (one for one in found if MEAN in one.numbers and one.task is not None):
        other = largest.setdefault(one.words, one)
        if one.numbers[MEAN].count > other.numbers[MEAN].count:
            largest[one.words] = one
    return list(largest.values())[:5]
