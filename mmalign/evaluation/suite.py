"""A suite: one YAML file names sets and measures, one `results.json` holds what came out.

    suite.yaml + encoder -> embed each set once -> measures -> results.json, gallery.json

On several ranks each does its share (`embed.py`, `retrieval.py`), all have the same results, and rank 0
writes them.
"""

from pathlib import Path
from typing import Literal

import pydantic

from mmalign import distributed
from mmalign.commit import write_json
from mmalign.config import Section
from mmalign.console import say
from mmalign.data.reader import ShardSet
from mmalign.errors import UserError
from mmalign.evaluation.alignment import measure_alignment
from mmalign.evaluation.embed import EmbeddedSet, embed_set
from mmalign.evaluation.encoder import Encoder
from mmalign.evaluation.gallery import make_gallery
from mmalign.evaluation.names import ALL, MEAN
from mmalign.evaluation.results import Results, environment
from mmalign.evaluation.retrieval import measure_retrieval


class SetConfig(Section):
    name: str = pydantic.Field(pattern=r"^[\w-]+$")
    """Name of the set in metric names."""
    shards: str
    """Folder of its shards."""
    languages: tuple[str, ...] | None = None
    """Captions in these languages only; none: all."""
    measures: tuple[Literal["retrieval", "alignment"], ...] = ("retrieval", "alignment")


class SuiteConfig(Section):
    name: str
    sets: tuple[SetConfig, ...] = pydantic.Field(min_length=1)
    recall_at: tuple[pydantic.PositiveInt, ...] = pydantic.Field(default=(1, 5, 10), min_length=1)
    gallery: tuple[str, ...] = ()
    """Languages of the queries shown in the report, from the first set."""

    @pydantic.model_validator(mode="after")
    def _names_differ(self) -> "SuiteConfig":
        names = [entry.name for entry in self.sets]
        if len(set(names)) < len(names):
            raise ValueError("two sets have the same name")
        return self


def measure(config: SuiteConfig, encoder: Encoder) -> Results:
    """All measures of the suite on one model.

    A collective: every rank calls it, with equal weights, and gets the same results.

    Raises:
        UserError: a set is missing or lacks a language, or the ranks differ in weights or data.
    """
    results, _ = _measure_and_keep(config, encoder)
    return results


def means_of(results: Results) -> dict[str, float]:
    """The metrics that sum up languages: `mean` over them, and `all` captions."""
    return {n: value for n, value in results.metrics.items() if n.split("/")[2] in (MEAN, ALL)}


def run_suite(
    config: SuiteConfig, encoder: Encoder, out: Path, baselines: dict[str, Encoder]
) -> Results:
    """Measure the model and the baselines; rank 0 writes `results.json` and `gallery.json` into `out`.

    A collective, as `measure`.

    Raises:
        UserError: a set is missing or lacks a language, or the ranks differ in weights or data.
    """
    results, first = _measure_and_keep(config, encoder)
    for name, baseline in baselines.items():
        say(f"suite {config.name}: the {name} model")
        results.baselines[name] = measure(config, baseline)
    if distributed.is_main():
        out.mkdir(parents=True, exist_ok=True)
        if config.gallery:
            shard_set = ShardSet(Path(config.sets[0].shards))
            write_json(out / "gallery.json", make_gallery(first, shard_set, config.gallery))
        results.write(out / "results.json")
    return results


def _measure_and_keep(config: SuiteConfig, encoder: Encoder) -> tuple[Results, EmbeddedSet]:
    """The results, and the first set's embeddings for the gallery."""
    results = Results(suite=config.name, model=encoder.facts, environment=environment())
    _must_agree(encoder.facts.get("sha256"), f"{encoder.facts.get('path')}: its weights")
    kept = None
    for entry in config.sets:
        shard_set = ShardSet(Path(entry.shards))
        _must_agree(shard_set.manifest.sha256, f"set `{entry.name}`: the data in {entry.shards}")
        embedded = embed_set(encoder, shard_set, entry.name, entry.languages)
        shard_set.close()
        kept = kept or embedded
        if "retrieval" in entry.measures:
            measure_retrieval(embedded, config.recall_at, results)
        if "alignment" in entry.measures:
            measure_alignment(embedded, results)
    assert kept is not None
    return results, kept


def _must_agree(fingerprint: str | None, what: str) -> None:
    """Hosts with files of their own, or a checkpoint written meanwhile, would mix two models or two sets."""
    if len(set(distributed.gather_objects(fingerprint))) > 1:
        raise UserError(
            f"{what} differ between the ranks; give every host the same files and repeat"
        )
