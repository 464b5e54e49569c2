"""Zero-shot classification in many languages: which class name is nearest to an image?

zero_shot/<set>/<lang>/accuracy@<k>     lang: a code, `mean` of the languages or `worst5`, the five lowest

A language is measured on the images whose class has a name in it (Babel-ImageNet,
arXiv 2306.08658), so languages differ in their chance level, which is recorded with every number.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydantic

from mmalign.core import distributed
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.evaluation.class_images import (
    LabelledImages,
    draw_per_class,
    encode_labelled,
    images_of_folder,
    images_of_shards,
)
from mmalign.evaluation.class_names import LABEL, SLOT, Names, Prompts, read_templates
from mmalign.evaluation.measured import Measured
from mmalign.evaluation.nearest import hits_at
from mmalign.evaluation.over_ranks import encode_texts_over_ranks, map_over_ranks
from mmalign.evaluation.retrieval import Answers, add_answers
from mmalign.models.encoder import DualModel
from mmalign.results.metric_names import MEAN, MetricName
from mmalign.results.results import Results

# Recorded in results and compared between them: another wording makes older results incomparable.
PROTOCOL = (
    "zero-shot classification: {pictures}; a language is measured on those whose class has a name in it, "
    "against these names; a class is the mean of the unit vectors of its sentences, made unit length; "
    "prompts: {prompts}; a hit: the name of the picture's class is among the first k by inner product; equal "
    "names are one class; equal scores of other names count against the model; `mean` averages the "
    "languages, `worst5` the five lowest; names: {names}"
)


class ZeroShotConfig(Measured):
    images: str | None = None
    """Folder of images in ImageNet's layout: one subfolder per class."""
    class_names: str | None = None
    """Of `images`: `openai` (ImageNet, English), Babel-ImageNet's file, or a folder of `<lang>.json`."""
    shards: str | None = None
    """Folder of shards instead of `images`: an image's first caption in a language names its class there."""
    prompts: str = LABEL
    """`label`: names alone; `openai`: 80 English templates; or a folder of `<lang>.json`."""
    accuracy_at: tuple[pydantic.PositiveInt, ...] = pydantic.Field(default=(1, 5), min_length=1)
    pictures_per_class: pydantic.PositiveInt | None = None
    """At most so many images of a class, drawn with `seed`; none: all."""
    seed: int = pydantic.Field(default=0, ge=0)

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> "ZeroShotConfig":
        if (self.images is None) == (self.shards is None):
            raise ValueError("name either `images` or `shards`")
        if (self.images is None) != (self.class_names is None):
            raise ValueError("`class_names` belongs to `images`; shards bring the names themselves")
        return self


def measure_zero_shot(model: DualModel, config: ZeroShotConfig, results: Results) -> None:
    """Add accuracy@k of every language, their mean and the five worst to `results`. A collective.

    Raises:
        UserError: files that are missing or broken, a language without names, or ranks that differ in files.
    """
    if config.shards is not None:
        images = images_of_shards(Path(config.shards))
    else:
        assert config.images is not None and config.class_names is not None
        images = images_of_folder(Path(config.images), config.class_names)
    distributed.must_agree(images.sha256, f"zero-shot set `{config.name}`: images or names")
    for left_out in images.left_out:
        say(f"zero-shot set `{config.name}`: {left_out}")
    names = _usable(images, config)
    prompts = read_templates(config.prompts, list(names))
    # Images of classes without a name would be encoded for nothing.
    with_name = set().union(*names.values())
    named_N = np.flatnonzero([one in with_name for one in images.classes])
    classes = [images.classes[i] for i in named_N]
    kept = named_N[draw_per_class(classes, config.pictures_per_class, config.seed)]
    image_ND = encode_labelled(model, images, kept.tolist())
    # Names that are equal are one class: no model can tell them apart, and ties count against it.
    words = {lang: list(dict.fromkeys(names[lang].values())) for lang in names}
    vectors = {lang: embed_names(model, words[lang], prompts[lang]) for lang in names}

    def measure(lang: str) -> Answers:
        number = {word: i for i, word in enumerate(words[lang])}
        # -1 where the class has no name in the language: the image is left out.
        called = [names[lang].get(images.classes[i]) for i in kept.tolist()]
        label_N = np.array([-1 if one is None else number[one] for one in called], np.int64)
        named_N, pool, ks = label_N >= 0, np.arange(len(number)), config.accuracy_at
        hits = hits_at(image_ND[named_N], vectors[lang], label_N[named_N], pool, ks)
        return Answers(kept[named_N], hits, {k: min(1.0, k / len(pool)) for k in ks})

    answers = map_over_ranks(dict.fromkeys(names, 1), measure)
    name = MetricName("zero_shot", config.name, MEAN, (), "accuracy")
    results.protocol[name.prefix] = {
        "how": "; ".join([PROTOCOL, *images.left_out]),
        **_protocol(config, len(kept), words, prompts),
    }
    results.data[config.name] = images.sha256
    add_answers(results, name, answers, config.accuracy_at, pooled=False)


def embed_names(model: DualModel, words: Sequence[str], prompts: Prompts) -> np.ndarray:
    """(C, D) float32 of unit length: a name is the mean of the unit vectors of its sentences.

    Prompt ensembling in the space of embeddings (CLIP, arXiv 2103.00020, section 3.1.4). A collective.
    """
    sentences = [one.replace(SLOT, word) for word in words for one in prompts.templates]
    text_MD = encode_texts_over_ranks(model.encode_texts, sentences)
    class_CD = text_MD.reshape(len(words), len(prompts.templates), -1).mean(1)
    # Sentences that point in opposite directions may cancel out.
    length_C1 = np.linalg.norm(class_CD, axis=1, keepdims=True)
    return (class_CD / np.maximum(length_C1, 1e-12)).astype(np.float32)


def _usable(images: LabelledImages, config: ZeroShotConfig) -> Names:
    """The names in the languages to measure, sorted by language."""
    shown, names = set(images.classes), images.names
    # One name alone leaves nothing to choose, and names of classes without images nothing to ask.
    usable = {
        lang: names[lang]
        for lang in sorted(names)
        if len(set(names[lang].values())) > 1 and shown & names[lang].keys()
    }
    lacking = [lang for lang in config.languages or () if lang not in usable]
    if lacking or not usable:
        raise UserError(
            f"zero-shot set `{config.name}`: fewer than two classes have names in "
            f"`{(*lacking, 'any language')[0]}`; languages that have: {', '.join(usable) or 'none'}"
        )
    return {lang: usable[lang] for lang in sorted(set(config.languages or usable))}


def _protocol(
    config: ZeroShotConfig, images: int, words: dict[str, list[str]], prompts: dict[str, Prompts]
) -> dict[str, str]:
    drawn = f" (at most {config.pictures_per_class} of a class, drawn with seed {config.seed})"
    alone = [lang for lang, one in prompts.items() if one.templates == (SLOT,)]
    wanting = f" (names alone, for want of templates, in {', '.join(alone)})"
    return {
        "pictures": f"{images} pictures" + (drawn if config.pictures_per_class else ""),
        "prompts": config.prompts + (wanting if config.prompts != LABEL and alone else ""),
        "names": ", ".join(f"{lang} {len(of_lang)}" for lang, of_lang in words.items()),
    }
