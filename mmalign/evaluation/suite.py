"""A suite: one YAML file names sets and measures, one `results.json` holds what was measured.

    sets       shards + model -> embedded once -> retrieval, alignment, geometry -+
    layers     captions of these sets + text tower -> every layer's alignment    +-> results.json, queries.npz
    words      bilingual dictionaries + model -> translation                     |   gallery.json
    lexical    dictionaries + text tower -> every layer's alignment of words     |
    zero_shot  labelled images + class names + model -> accuracy                -+
    probe      labelled images for training and testing + model -> accuracy     -+

Several ranks share the work (`over_ranks.py`), all have the same results, and rank 0 writes them.
"""

from functools import partial
from pathlib import Path
from typing import Literal

import pydantic

from mmalign.core import distributed
from mmalign.core.commit import check_writable, write_json
from mmalign.core.config import Section
from mmalign.core.console import say
from mmalign.core.precision import Precision
from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation.alignment import measure_alignment
from mmalign.evaluation.embed import embed_set
from mmalign.evaluation.gallery import make_gallery
from mmalign.evaluation.geometry import measure_geometry
from mmalign.evaluation.image_probe import ImageProbeConfig, measure_image_probe
from mmalign.evaluation.layers import LayersConfig, probe_layers
from mmalign.evaluation.lexical_probe import HELD_OUT, MEASURE, PRECISION, ProbeConfig, probe
from mmalign.evaluation.lexicon import read_lexicon
from mmalign.evaluation.measured import Language, Measured
from mmalign.evaluation.retrieval import Protocol, measure_retrieval
from mmalign.evaluation.truncate import check_dims
from mmalign.evaluation.words import WordsConfig, measure_words
from mmalign.evaluation.zero_shot import ZeroShotConfig, measure_zero_shot
from mmalign.models.encoder import DualModel
from mmalign.models.load import text_encoder_of
from mmalign.results.metric_names import ALL, MEAN, PROBE, WORST5, MetricName
from mmalign.results.protocol import NOTE
from mmalign.results.results import Results, environment, writing

Measure = Literal["retrieval", "alignment", "geometry"]


class SetConfig(Measured):
    shards: str
    """Folder of its shards."""
    measures: tuple[Measure, ...] = ("retrieval", "alignment")
    protocols: tuple[Protocol, ...] = pydantic.Field(default=("all-captions",), min_length=1)
    """Of retrieval: every caption counts, or the first one of an image in each language."""
    sharded: bool = False
    """For sets whose images one process should not hold: each rank keeps and searches its share."""

    @pydantic.model_validator(mode="after")
    def _geometry_needs_all_images(self) -> "SetConfig":
        if self.sharded and "geometry" in self.measures:
            raise ValueError("`geometry` needs all images on one rank; take `sharded` out")
        return self


class SuiteConfig(Section):
    name: str
    sets: tuple[SetConfig, ...] = ()
    layers: LayersConfig | None = None
    words: tuple[WordsConfig, ...] = ()
    lexical: tuple[ProbeConfig, ...] = ()
    zero_shot: tuple[ZeroShotConfig, ...] = ()
    probe: tuple[ImageProbeConfig, ...] = ()
    recall_at: tuple[pydantic.PositiveInt, ...] = pydantic.Field(default=(1, 5, 10), min_length=1)
    dims: tuple[pydantic.PositiveInt, ...] = ()
    """Retrieval also by the first so many dimensions, re-normalised (`objective.dims`)."""
    gallery: tuple[Language, ...] = ()
    """Languages of the queries shown in the report, from the first set."""
    precision: Precision = "auto"
    """What the model encodes images and texts in. auto: bf16 on GPUs that multiply it in hardware, else fp32;
    the protocol records bf16."""

    @pydantic.model_validator(mode="after")
    def _is_consistent(self) -> "SuiteConfig":
        if not (self.sets or self.words or self.lexical or self.zero_shot or self.probe):
            raise ValueError(
                "name what to measure: `sets`, `words`, `lexical`, `zero_shot` or `probe`"
            )
        # Of labelled images together: the hash of their files is kept under the name.
        names = [one.name for one in self.zero_shot] + [one.name for one in self.probe]
        others = ([entry.name for entry in of] for of in (self.sets, self.words, self.lexical))
        for of_kind in (*others, names):
            if len(set(of_kind)) < len(of_kind):
                raise ValueError("two sets have the same name")
        if len(set(self.dims)) < len(self.dims):
            raise ValueError("`dims` lists a length twice; keep one")
        unknown = set(self.layers.sets if self.layers else ()) - {one.name for one in self.sets}
        if unknown:
            raise ValueError(f"`layers.sets` names `{min(unknown)}`, which is no set of this suite")
        if self.gallery and (not self.sets or self.sets[0].sharded):
            raise ValueError("`gallery` needs a first set whose images are all on one rank")
        return self


def means_of(results: Results) -> dict[str, float]:
    """The metrics that sum up languages or have none, families left out; of words one per layer."""
    means = {}
    for name, value in results.metrics.items():
        one = MetricName.parse(name)
        of_words = one.measure == MEASURE and (one.setting[1:], one.metric) != (
            (HELD_OUT,),
            PRECISION,
        )
        if (one.language in (MEAN, WORST5, ALL) and not of_words) or one.measure == PROBE:
            means[name] = value
    return means


def run_suite(
    config: SuiteConfig, model: DualModel, out: Path, baselines: dict[str, DualModel]
) -> Results:
    """`measure` the model and the baselines; rank 0 writes `results.json` and `gallery.json` into `out`."""
    for file in ("results.json", *(["gallery.json"] if config.gallery else [])):
        distributed.on_main(partial(check_writable, out / file))
    results = measure(config, model, out)
    for name, baseline in baselines.items():
        say(f"suite {config.name}: the {name} model")
        results.baselines[name] = measure(config, baseline)
    distributed.on_main(lambda: results.write(out / "results.json"))
    return results


def measure(config: SuiteConfig, model: DualModel, out: Path | None = None) -> Results:
    """All measures of the suite on one model. A collective: every rank gets the same results.

    Args:
        out: where rank 0 writes `gallery.json`, if the suite has one; none: nowhere.

    Raises:
        UserError: a set is missing or lacks a language, or the ranks differ in weights or data.
    """
    results = Results(suite=config.name, model=model.facts, environment=environment())
    if config.precision != "auto":
        model.precision = config.precision
    distributed.must_agree(model.facts.get("sha256"), f"{model.facts.get('path')}: its weights")
    for dims in config.dims:
        check_dims(dims, model.width, "dims")
    for i, entry in enumerate(config.sets):  # one set at a time: embeddings are large
        _measure_set(config, entry, model, results, None if i else out)  # a gallery of the first
    for words in config.words:
        measure_words(model.encode_texts, words, results)
    for lexicon in config.lexical:
        probe(text_encoder_of(model), read_lexicon(lexicon), results, lexicon.pooling)
    for labelled in config.zero_shot:
        measure_zero_shot(model, labelled, results)
    for probed in config.probe:
        measure_image_probe(model, probed, results)
    if model.note:
        results.protocol = {
            name: {**of_one, NOTE: model.note} for name, of_one in results.protocol.items()
        }
    return results


def _write_gallery(path: Path, gallery: object) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, gallery)


def _measure_set(
    config: SuiteConfig, entry: SetConfig, model: DualModel, results: Results, out: Path | None
) -> None:
    shard_set = distributed.on_all(lambda: ShardSet(Path(entry.shards)))
    sha256 = results.data[entry.name] = shard_set.manifest.sha256
    distributed.must_agree(sha256, f"set `{entry.name}`: the data in {entry.shards}")
    # Alignment alone needs no images, so that a text encoder can be measured.
    images = set(entry.measures) != {"alignment"} or bool(config.gallery)
    embedded = embed_set(model, shard_set, entry.name, entry.languages, entry.sharded, images)
    if config.gallery and out is not None:
        path = out / "gallery.json"
        distributed.on_main(
            lambda: _write_gallery(path, make_gallery(embedded, shard_set, config.gallery))
        )
    shard_set.close()
    if "retrieval" in entry.measures:
        for one in (embedded, *map(embedded.with_dims, config.dims)):
            measure_retrieval(one, config.recall_at, results, entry.protocols)
    if "alignment" in entry.measures:
        measure_alignment(embedded, results)
    if "geometry" in entry.measures:
        measure_geometry(embedded, results)
    if config.layers and entry.name in config.layers.sets:
        probe_layers(text_encoder_of(model), embedded, results, config.layers)
