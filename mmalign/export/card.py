"""The model card: README.md with front matter for the hub, from measured and recorded facts only.

    Source -> front matter                      languages, licence, base model, model-index (eval_results.py)
           -> use and limits                    sentences made from the measurements (card_limits.py)
           -> how to load it, format by format  templates/load-<format>.md.j2
           -> results, training                 tables (card_results.py, card_training.py)
           -> templates/card.md.j2 -> README.md

What was not measured or not recorded does not appear. Nothing depends on where the folder lies, so the same
source gives the same card.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import nn

from mmalign.core.commit import write_atomic
from mmalign.core.config import write_yaml
from mmalign.core.redact import redact
from mmalign.export.card_limits import use_and_limits
from mmalign.export.card_results import known_languages, language_tables, summary
from mmalign.export.card_training import (
    base_model,
    caption_table,
    data_table,
    fine_tuned_on,
    how_trained,
    is_masked,
    trained_languages,
)
from mmalign.export.eval_results import eval_results
from mmalign.export.lineage import without_folders
from mmalign.export.markdown import code_block, listed, one_line, percents_apart, plain, prose
from mmalign.export.sentence_transformers import auto_class, dense_layers
from mmalign.export.source import Source
from mmalign.models.encoder import Encoder
from mmalign.models.image_tower import TimmTower
from mmalign.models.pooling import POOLINGS
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.results import Results

TEXTS_ONLY = "sentence-transformers"
# Where the snippets look for a folder that has no name on the hub.
PLACE = "path/to/this/folder"
# The hub's name of the library, and further tags.
_LIBRARIES = {
    TEXTS_ONLY: ("sentence-transformers", ("feature-extraction", "transformers")),
    "sentence-transformers-router": ("sentence-transformers", ("feature-extraction",)),
    "transformers": ("transformers", ("vision-text-dual-encoder",)),
    "open_clip": ("open_clip", ("clip",)),
    "onnx": ("onnx", ()),
}
_PIPELINES = {"open_clip": "zero-shot-image-classification", "transformers": "feature-extraction"}
_HUB_METRICS = {"recall": "recall", "accuracy": "accuracy", "bitext": "accuracy", "f1": "f1"}


def write_card(
    source: Source,
    folder: Path,
    formats: Sequence[str],
    title: str,
    license: str | None = None,
    repo_id: str | None = None,
) -> None:
    """Write `folder/README.md`.

    Args:
        formats: what the folder holds; the first one names the library in the front matter.
        title: name of the model, the card's heading.
        license: identifier of the licence; none: the card names none.
        repo_id: name on the hub that the folder was written for; none: the snippets load a folder.
    """
    title = one_line(title)
    metadata = _metadata(source, formats, title, license).to_yaml()
    body = _environment().get_template("card.md.j2")
    text = body.render(
        title=plain(title),
        formats=formats,
        **_identity(source, formats, license),
        **_loading(source, formats, repo_id),
        int8=_int8_loss(folder),
        **_results(source.results),
        **_training(source),
    )
    write_atomic(folder / "README.md", f"---\n{metadata}\n---\n{_single_gaps(text)}")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mmalign.export"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Markdown, not HTML: what strangers wrote goes through `plain` or `e`, one by one.
        autoescape=False,
    )
    environment.filters["md"] = plain
    environment.filters["prose"] = prose
    environment.filters["quoted"] = _quoted
    return environment


def _quoted(text: str) -> str:
    """The text as Python writes it."""
    return json.dumps(text, ensure_ascii=False)


def _single_gaps(text: str) -> str:
    """Never two empty lines in a row, whatever was left out."""
    return re.sub(r"\n{3,}", "\n\n", text)


def _metadata(
    source: Source, formats: Sequence[str], title: str, license: str | None
) -> ModelCardData:
    codes = _languages(source)
    library, _ = _LIBRARIES[formats[0]]
    found = [] if source.results is None else eval_results(source.results)
    metrics = {_HUB_METRICS.get(one.metric_type.partition("_")[0]) for one in found}
    regions: dict[str, Any] = {"language_bcp47": codes} if _any_regions(codes) else {}
    return ModelCardData(
        language=_iso_codes(codes) or None,
        license=license,
        library_name=library,
        pipeline_tag=_PIPELINES.get(formats[0], "sentence-similarity"),
        tags=_tags(formats, codes),
        base_model=base_model(source),
        metrics=sorted(metric for metric in metrics if metric) or None,
        model_name=title if found else None,
        eval_results=found or None,
        **regions,
    )


def _languages(source: Source) -> list[str]:
    """Those of the training data; where these are not known, those that were measured."""
    trained = trained_languages(source.lineage)
    measured = known_languages(source.results) if source.results else ()
    return sorted(trained or measured)


def _any_regions(codes: Sequence[str]) -> bool:
    """Whether a code says more than a language: a script, a region, a variant."""
    return any("-" in code for code in codes)


def _iso_codes(codes: Sequence[str]) -> list[str]:
    """ISO 639-1 or 639-3, without scripts and regions: the hub takes two or three letters."""
    bare = {code.split("-")[0].lower() for code in codes}
    return sorted(code for code in bare if re.fullmatch(r"[a-z]{2,3}", code))


def _tags(formats: Sequence[str], codes: Sequence[str]) -> list[str]:
    tags = [tag for name in formats for tag in (_LIBRARIES[name][0], *_LIBRARIES[name][1])]
    if len(codes) > 1:
        tags.append("multilingual")
    return list(dict.fromkeys([*tags, "mmalign"]))


def _identity(source: Source, formats: Sequence[str], license: str | None) -> dict[str, Any]:
    """What it is, in a sentence and a few lines; and what it is for."""
    tower, encoder = source.tower, _encoder_inside(source, formats)
    lines = [f"Text tower: {_describe(tower)}."]
    if encoder is not None:
        image, size = encoder.config.image, encoder.model.image_tower.size
        lines.append(
            f"Image tower: {plain(image.name)} ({image.kind}), pictures of {size} x {size} pixels."
        )
    lines.append(f"In this folder: {listed(list(formats))}.")
    facts = tower.facts
    if facts.get("sha256"):
        step = f", step {facts['step']}" if facts.get("step") else ""
        lines.append(f"Weights: sha256 `{facts['sha256']}`{step}.")
    if license:
        lines.append(f"Licence: {plain(license)}.")
    return {
        "about": _about(source, encoder),
        "facts": lines,
        "limits": use_and_limits(source, pictures=encoder is not None),
    }


def _encoder_inside(source: Source, formats: Sequence[str]) -> Encoder | None:
    """Both towers, where one of the formats holds both."""
    return source.encoder if any(name != TEXTS_ONLY for name in formats) else None


def _about(source: Source, encoder: Encoder | None) -> str:
    width = source.tower.feature_width
    if encoder is not None:
        return (
            f"A text tower and an image tower that share one space of {width} dimensions, trained by mmalign "
            "with pictures as the pivot: captions were taught to meet the pictures that they describe, and "
            "through the pictures each other."
        )
    if source.encoder is not None:
        return (
            f"A text encoder whose languages share one space of {width} dimensions: the text tower of a "
            "model that mmalign trained with pictures as the pivot. Captions were taught to meet the "
            "pictures that they describe, and through the pictures each other."
        )
    if is_masked(source.config):
        return f"A text encoder of {width} dimensions, trained by mmalign to predict hidden words."
    is_same = source.config.get("trainable") == "head"
    task = None if is_same else fine_tuned_on(source.config)
    return (
        f"A text encoder of {width} dimensions{f', fine-tuned on {plain(task)}' if task else ''}."
    )


def _describe(tower: TextEncoder) -> str:
    layers = dense_layers(tower.projection)
    projection = {0: "no projection", 1: "a linear projection"}.get(
        len(layers), "an MLP projection"
    )
    length = "unit length" if tower.unit_length else "lengths as they come"
    kind = plain(tower.trunk.config.model_type)
    return f"{kind}, {tower.pooling} pooling, {projection}, {length}; at most {tower.max_length} tokens"


def _loading(source: Source, formats: Sequence[str], repo_id: str | None) -> dict[str, Any]:
    """What the snippets name."""
    tower, encoder = source.tower, _encoder_inside(source, formats)
    name = repo_id or PLACE
    return {
        "name": name,
        "repo_id": repo_id,
        "loader": auto_class(tower.trunk).__name__ if TEXTS_ONLY in formats else None,
        "pooling_code": POOLINGS[tower.pooling].code,
        "dense": [
            (f"{number}_Dense", "gelu" if isinstance(activation, nn.GELU) else None)
            for number, (_, activation) in enumerate(dense_layers(tower.projection), start=2)
        ],
        "unit_length": tower.unit_length,
        "max_length": tower.max_length,
        "pad_id": tower.tokenizer.padding_id,
        "pad_token": tower.tokenizer.inner.pad_token,
        "image": encoder and encoder.model.image_tower,
        "by_timm": encoder is not None and isinstance(encoder.config.image, TimmTower),
    }


def _int8_loss(folder: Path) -> str:
    """What the 8-bit text tower costs, as `onnx.py` measured it; empty: there is none."""
    path = folder / "onnx" / "config.json"
    if not path.is_file():
        return ""
    loss = json.loads(path.read_text(encoding="utf-8"))["int8"]
    cosine, recall = loss["cosine"], loss.get("recall@1")
    vectors = (
        f"Its vectors have a cosine of {cosine['mean']} to the exact ones in the mean and {cosine['worst']} "
        f"at worst ({plain(cosine['measured_on'])})."
    )
    return vectors if recall is None else f"{vectors} {_int8_recall(recall)}"


def _int8_recall(recall: dict[str, Any]) -> str:
    """Recall@1 with either text tower, and whether the interval of the difference leaves out zero."""
    int8, fp32 = percents_apart(recall["int8"], recall["fp32"])
    low, high = recall["difference_ci95"]
    difference, lowest, highest = percents_apart(recall["difference"], low, high)
    found = "" if low > 0 or high < 0 else ": no difference is shown"
    return (
        f"Recall@1 of {recall['captions']} captions in {recall['languages']} languages among "
        f"{recall['pictures']} pictures is {int8} % with 8-bit weights and {fp32} % without (difference "
        f"{difference} points, 95 % interval {lowest} to {highest}{found})."
    )


def _results(results: Results | None) -> dict[str, Any]:
    if results is None or not results.metrics:
        return {"summary": "", "tables": [], "protocol": {}}
    return {
        "summary": summary(results),
        "tables": language_tables(results),
        "protocol": {**results.protocol, **_versions(results)},
    }


def _versions(results: Results) -> dict[str, str]:
    versions = ", ".join(f"{name} {value}" for name, value in results.environment.items())
    return {"environment": versions} if versions else {}


def _training(source: Source) -> dict[str, Any]:
    config = without_folders(redact(source.config))
    return {
        "training": how_trained(source),
        "data": data_table(source.lineage),
        "captions": caption_table(source.lineage),
        "config": code_block(write_yaml(config), "yaml") if config else "",
    }
