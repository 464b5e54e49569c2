"""Zero-shot classification in many languages: which class name is nearest to a picture?

    Pictures -+-> encoded once, dealt out over the ranks ----------------> image_ND -+-> Answers -> Results
              +-> names of one language -> in templates -> mean vectors -> class_CD -+

zero_shot/<set>/<lang>/accuracy@<k>     lang: a code, `mean` of the languages or `worst5`, the five lowest

Only vectors are kept. A language is measured on the pictures whose class has a name in it (Babel-ImageNet,
arXiv 2306.08658), so languages differ in their chance level, which stands beside every number.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydantic

from mmalign.core import distributed
from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.evaluation.class_images import (
    Pictures,
    encode_pictures,
    pictures_of_folder,
    pictures_of_shards,
)
from mmalign.evaluation.class_names import LABEL, Names, Prompts, read_templates
from mmalign.evaluation.embed import encode_dealt
from mmalign.evaluation.nearest import hits_at
from mmalign.evaluation.retrieval import Answers, add_mean, add_worst5, draw_sums
from mmalign.models.encoder import DualModel
from mmalign.results.metric_names import MEAN
from mmalign.results.results import Results

PROTOCOL = (
    "zero-shot classification: {pictures}; a language is measured on those whose class has a name in it, "
    "against these names; a class is the mean of the unit vectors of its sentences, made unit length; "
    "prompts: {prompts}; a hit: the name of the picture's class is among the first k by inner product; equal "
    "names are one class; equal scores of other names count against the model; `mean` averages the "
    "languages, `worst5` the five lowest; names: {names}"
)


class ZeroShotConfig(Section):
    name: str = pydantic.Field(pattern=r"^[\w-]+$")
    """Name of the set in metric names."""
    images: str | None = None
    """Folder of pictures in ImageNet's layout: a subfolder a class."""
    class_names: str | None = None
    """Names of the classes of `images`: `openai` (ImageNet, English), a file in Babel-ImageNet's layout, or a
    folder of `<lang>.json`, {subfolder: name}."""
    shards: str | None = None
    """Folder of shards instead of `images`: a picture's first caption in a language names its class there."""
    languages: tuple[str, ...] | None = pydantic.Field(default=None, min_length=1)
    """In these languages only; none: all that name at least two classes."""
    prompts: str = LABEL
    """`label`: names alone; `openai`: 80 English templates; or a folder of `<lang>.json`."""
    accuracy_at: tuple[pydantic.PositiveInt, ...] = pydantic.Field(default=(1, 5), min_length=1)
    pictures_per_class: pydantic.PositiveInt | None = None
    """At most so many pictures of a class, drawn with `seed`; none: all."""
    seed: int = pydantic.Field(default=0, ge=0)

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> "ZeroShotConfig":
        if (self.images is None) == (self.shards is None):
            raise ValueError("name either `images` or `shards`")
        if (self.images is None) != (self.class_names is None):
            raise ValueError("`class_names` belongs to `images`; shards bring the names themselves")
        return self


def measure_zero_shot(model: DualModel, config: ZeroShotConfig, results: Results) -> None:
    """Add accuracy@k of every language, their mean and the five worst to `results`.

    A collective: every rank calls it with equal weights and equal files, and has the same results afterwards.

    Raises:
        UserError: files that are missing or broken, a language without names, or ranks that differ in files.
    """
    pictures = _open(config)
    names = _usable(pictures.names, config)
    prompts = read_templates(config.prompts, list(names))
    kept = np.array(_draw(pictures.classes, names, config))
    image_ND = encode_dealt(
        lambda batch: encode_pictures(model, pictures, kept[batch].tolist()), range(len(kept))
    )
    words = {lang: list(dict.fromkeys(names[lang].values())) for lang in names}
    vectors = {lang: embed_names(model, words[lang], prompts[lang]) for lang in names}
    found = {
        lang: _answers(
            image_ND, kept, _labels(pictures, kept, names[lang], words[lang]), vectors[lang], config
        )
        for lang in list(names)[distributed.rank() :: distributed.world_size()]
    }
    parts = distributed.gather_objects(found)
    answers = {lang: parts[i % len(parts)][lang] for i, lang in enumerate(names)}
    results.protocol[f"zero_shot/{config.name}"] = _protocol(config, len(kept), words, prompts)
    results.data[config.name] = pictures.sha256
    _add(results, config, answers)


def embed_names(model: DualModel, words: Sequence[str], prompts: Prompts) -> np.ndarray:
    """(C, D) float32 of unit length: a name is the mean of the unit vectors of its sentences.

    Prompt ensembling in the space of embeddings (CLIP, arXiv 2103.00020, section 3.1.4). A collective.
    """
    texts = [text for word in words for text in prompts.fill(word)]
    # Texts of like length share a batch: little padding.
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    text_MD = encode_dealt(lambda batch: model.encode_texts([texts[i] for i in batch]), by_length)
    class_CD = text_MD.reshape(len(words), len(prompts.templates), -1).mean(1)
    length_C1 = np.linalg.norm(class_CD, axis=1, keepdims=True)
    return (class_CD / np.maximum(length_C1, 1e-12)).astype(np.float32)


def _open(config: ZeroShotConfig) -> Pictures:
    """The pictures, equal on all ranks: others would mix two sets, or wait for each other for ever."""
    if config.shards is not None:
        pictures = pictures_of_shards(Path(config.shards))
    else:
        assert config.images is not None and config.class_names is not None
        pictures = pictures_of_folder(Path(config.images), config.class_names)
    if len(set(distributed.gather_objects(pictures.sha256))) > 1:
        raise UserError(
            f"zero-shot set `{config.name}`: pictures or names differ between the ranks; give every host "
            "the same files and repeat"
        )
    return pictures


def _usable(names: Names, config: ZeroShotConfig) -> Names:
    """The names in the languages to measure, sorted by language; one name alone leaves nothing to choose."""
    usable = {lang: names[lang] for lang in sorted(names) if len(set(names[lang].values())) > 1}
    lacking = [lang for lang in config.languages or () if lang not in usable]
    if lacking or not usable:
        raise UserError(
            f"zero-shot set `{config.name}`: fewer than two classes have names in "
            f"`{lacking[0] if lacking else 'any language'}`; languages that have: "
            f"{', '.join(usable) or 'none'}"
        )
    return {lang: usable[lang] for lang in sorted(set(config.languages or usable))}


def _draw(classes: Sequence[str], names: Names, config: ZeroShotConfig) -> list[int]:
    """The pictures to encode: of classes that have a name, at most `pictures_per_class` of each."""
    named = {one for of_lang in names.values() for one in of_lang}
    of_class: dict[str, list[int]] = {}
    for picture, one in enumerate(classes):
        if one in named:
            of_class.setdefault(one, []).append(picture)
    rng = np.random.default_rng(config.seed)
    drawn = [rng.permutation(members)[: config.pictures_per_class] for members in of_class.values()]
    return sorted(np.concatenate(drawn).tolist())


def _labels(
    pictures: Pictures, kept: np.ndarray, names: dict[str, str], words: Sequence[str]
) -> np.ndarray:
    """(N,) int64, the place in `words` of what each kept picture is called; -1 without a name.

    Names that are equal have one place: no model can tell them apart, and ties count against it.
    """
    place = {word: i for i, word in enumerate(words)}
    called = (names.get(pictures.classes[i]) for i in kept.tolist())
    return np.array([-1 if name is None else place[name] for name in called], np.int64)


def _answers(
    image_ND: np.ndarray,
    kept: np.ndarray,
    label_N: np.ndarray,
    class_CD: np.ndarray,
    config: ZeroShotConfig,
) -> Answers:
    """What the pictures that have a name in one language found among its names."""
    named_N, pool = label_N >= 0, np.arange(len(class_CD))
    hits = hits_at(image_ND[named_N], class_CD, label_N[named_N], pool, config.accuracy_at)
    chance = {k: min(1.0, k / len(pool)) for k in config.accuracy_at}
    return Answers(picture_Q=kept[named_N], hits=hits, chance=chance)


def _add(results: Results, config: ZeroShotConfig, answers: dict[str, Answers]) -> None:
    """Every language and the aggregates; the mean's interval is a bootstrap over pictures.

    A picture that is hard in one language is hard in the others too: drawn apart they would make the
    interval of the mean too narrow.
    """
    prefix = f"zero_shot/{config.name}"
    hits_KLT, asked_LT = draw_sums(list(answers.values()), config.accuracy_at)
    with np.errstate(invalid="ignore"):
        mean_KT = np.nanmean(hits_KLT / asked_LT, axis=1)  # a draw that misses a language
    for k, mean_T in zip(config.accuracy_at, mean_KT, strict=True):
        metric = f"accuracy@{k}"
        for lang, one in answers.items():
            name = f"{prefix}/{lang}/{metric}"
            results.add(name, one.hits[k], chance=one.chance[k], ids=one.picture_Q)
        add_mean(results, prefix, metric, list(answers))
        add_worst5(results, prefix, metric, list(answers))
        low, high = np.percentile(mean_T, (2.5, 97.5)).tolist()
        results.ci95[f"{prefix}/{MEAN}/{metric}"] = (low, high)


def _protocol(
    config: ZeroShotConfig, pictures: int, words: dict[str, list[str]], prompts: dict[str, Prompts]
) -> str:
    drawn = f" (at most {config.pictures_per_class} of a class, drawn with seed {config.seed})"
    alone = [lang for lang, one in prompts.items() if one.are_names_alone]
    wanting = f" (names alone, for want of templates, in {', '.join(alone)})"
    return PROTOCOL.format(
        pictures=f"{pictures} pictures" + (drawn if config.pictures_per_class else ""),
        prompts=config.prompts + (wanting if config.prompts != LABEL and alone else ""),
        names=", ".join(f"{lang} {len(of_lang)}" for lang, of_lang in words.items()),
    )
