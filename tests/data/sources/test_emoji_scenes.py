"""The emoji scenes are reproducible, and only the images join two languages."""

import hashlib
import io
from collections import Counter
from dataclasses import replace
from math import comb
from typing import Any

import pytest
from PIL import Image
from shard_sets import finished

from mmalign.core.batch import Pair
from mmalign.core.errors import UserError
from mmalign.data.sources.emoji_concepts import (
    LANGUAGES,
    NUM_CONCEPTS,
    load_concepts,
    load_sentences,
)
from mmalign.data.sources.emoji_scenes import (
    EmojiScenes,
    Scene,
    build_plan,
    draft_scene,
    languages_of_scene,
)

CONFIG = EmojiScenes(kind="emoji_scenes", train_scenes=60, test_scenes=20)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return list(finished(CONFIG.read(seed=3)))


HARD = EmojiScenes(
    kind="emoji_scenes",
    train_scenes=280,
    test_scenes=18,
    sentence_scenes=10,
    unpaired_scenes=28,
    concepts=400,
    per_scene=4,
    look_alikes=4,
    unpaired=0.2,
)


@pytest.fixture(scope="module")
def hard() -> list[Pair]:
    """The recipe of the demo, small. Nothing is drawn: these tests read captions."""
    return [draft.pair for draft in HARD.read(seed=3)]


def of_split(pairs: list[Pair], split: str) -> list[Pair]:
    return [pair for pair in pairs if pair.split == split]


def names_in(pair: Pair) -> list[frozenset[str]]:
    return [frozenset(caption.text.split(", ")) for caption in pair.captions]


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(pairs: list[Pair]) -> None:
    assert list(finished(CONFIG.read(seed=3))) == pairs
    assert [p.image for p in finished(CONFIG.read(seed=4))] != [p.image for p in pairs]


def test_a_scene_does_not_depend_on_the_scenes_before_it(pairs: list[Pair]) -> None:
    plan = build_plan(CONFIG, seed=3)
    assert draft_scene(plan, "train", 41).load() == of_split(pairs, "train")[41]
    longer = CONFIG.model_copy(update={"train_scenes": 61})
    assert list(finished(longer.read(seed=3)))[:60] == of_split(pairs, "train")


def test_a_themed_scene_shows_emoji_of_one_subgroup_and_never_a_combination_of_the_test() -> None:
    def shown(themed: float) -> list[tuple[str, ...]]:
        plan = build_plan(HARD.model_copy(update={"themed": themed}), seed=3)
        drafts = [draft_scene(plan, "train", i) for i in range(HARD.train_scenes)]
        subgroup = {concept.character: concept.subgroup for concept in plan.concepts}
        scenes = [draft.image.characters for draft in drafts if isinstance(draft.image, Scene)]
        numbers = {concept.character: i for i, concept in enumerate(plan.concepts)}
        combinations = {tuple(sorted(numbers[one] for one in scene)) for scene in scenes}
        assert not combinations & plan.held_out
        return [tuple(subgroup[one] for one in scene) for scene in scenes]

    # Of a subgroup of at least four, all four; a smaller one is filled up.
    alike = [len(set(groups)) == 1 for groups in shown(themed=1.0)]
    assert sum(alike) > 0.6 * len(alike)
    assert not any(len(set(groups)) == 1 for groups in shown(themed=0.0)[:100])
    mixed = sum(len(set(groups)) == 1 for groups in shown(themed=0.5))
    assert 0.35 * sum(alike) < mixed < 0.65 * sum(alike)


def test_object_scenes_show_one_concept_and_name_it_once() -> None:
    config = EmojiScenes(kind="emoji_scenes", train_scenes=0, test_scenes=1, object_scenes=201)
    objects = of_split(list(finished(config.read(seed=3))), "objects")
    concepts = load_concepts(LANGUAGES, 200)
    for index, concept in enumerate(concepts):
        assert {c.lang: c.text for c in objects[index].captions} == concept.names
    # The concepts take turns; another scene of one is another image.
    assert objects[200].captions == objects[0].captions
    assert objects[200].image != objects[0].image


def test_a_training_image_has_one_language_and_the_languages_take_turns(
    pairs: list[Pair],
) -> None:
    train = of_split(pairs, "train")
    assert all(len(pair.captions) == 1 for pair in train)
    counts = Counter(pair.captions[0].lang for pair in train)
    assert set(counts) == set(LANGUAGES)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len({pair.picture for pair in pairs}) == len({pair.image for pair in pairs}) == 80


def test_a_test_image_is_captioned_in_every_language_in_an_order_of_its_own(
    pairs: list[Pair],
) -> None:
    concepts = load_concepts(LANGUAGES, 200)
    index = {(lang, c.names[lang]): i for i, c in enumerate(concepts) for lang in LANGUAGES}
    orders_differ = 0
    for pair in of_split(pairs, "test"):
        assert tuple(caption.lang for caption in pair.captions) == LANGUAGES
        orders = {tuple(index[c.lang, n] for n in c.text.split(", ")) for c in pair.captions}
        assert len({frozenset(order) for order in orders}) == 1
        orders_differ += len(orders) > 1
    assert orders_differ == 20


def test_no_test_combination_is_trained_on() -> None:
    # 5,000 of 19,900 combinations of two are held out: 200 scenes that ignored this would show 50 of them.
    config = EmojiScenes(
        kind="emoji_scenes", train_scenes=200, test_scenes=5_000, per_scene=2, languages=("en",)
    )
    plan = build_plan(config, seed=0)
    held_out = {frozenset(plan.concepts[i].names["en"] for i in c) for c in plan.held_out}
    assert len(held_out) == len(plan.test_combinations) == 5_000
    assert all(names_in(draft_scene(plan, "test", i).load())[0] in held_out for i in range(20))
    assert not any(
        names_in(draft_scene(plan, "train", i).load())[0] in held_out for i in range(200)
    )


def test_names_are_distinct_within_every_language() -> None:
    concepts = load_concepts(LANGUAGES, NUM_CONCEPTS + 1)
    assert len(concepts) == NUM_CONCEPTS
    assert len({concept.character for concept in concepts}) == NUM_CONCEPTS
    for lang in LANGUAGES:
        names = [concept.names[lang] for concept in concepts]
        assert len(set(names)) == NUM_CONCEPTS
        assert not any("_" in name or ":" in name or "," in name or not name for name in names)


def test_images_are_drawn_in_colour_at_the_size_asked_for() -> None:
    config = CONFIG.model_copy(update={"image_size": 48})
    image = Image.open(io.BytesIO(next(finished(config.read(seed=0))).image))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 48))
    darkest, _ = image.convert("L").getextrema()
    assert darkest < 80  # an outline: something was drawn on the light ground
    assert len(set(image.get_flattened_data())) > 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_scene": 1, "test_scenes": 1000}, "concepts give .* scenes of 1, and 1500 are kept"),
        ({"per_scene": 2, "concepts": 100, "test_scenes": 4950}, "lower `test_scenes`"),
        ({"look_alikes": 60}, "`look_alikes` is 60, and the largest kind has"),
    ],
)
def test_more_scenes_than_there_are_is_a_sentence_and_no_endless_search(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_plan(CONFIG.model_copy(update=changes), seed=3)


def test_an_unknown_language_is_named_at_once_with_those_available() -> None:
    config = CONFIG.model_copy(update={"languages": ("en", "xx")})
    with pytest.raises(UserError, match=r"`xx`.*en, es, ja"):
        finished(config.read(seed=0))
    with pytest.raises(UserError, match="each language once"):
        finished(CONFIG.model_copy(update={"languages": ("en", "en")}).read(seed=0))
    with pytest.raises(
        UserError, match="`captions_per_scene` is 15, but `languages` names only 14"
    ):
        finished(CONFIG.model_copy(update={"captions_per_scene": 15}).read(seed=0))
    with pytest.raises(UserError, match="`sentence_scenes` is 21, more than the 20"):
        finished(CONFIG.model_copy(update={"sentence_scenes": 21}).read(seed=0))
    with pytest.raises(
        UserError, match=r"`unpaired` is 0\.0, which leaves a language without the 3"
    ):
        finished(CONFIG.model_copy(update={"unpaired_scenes": 1}).read(seed=0))


def test_these_images_and_captions_stay_what_they_were(pairs: list[Pair]) -> None:
    """The captions' digest is that of the first release: trained models and figures rest on them."""
    captions = hashlib.sha256()
    for pair in pairs:
        captions.update(repr([(c.lang, c.text) for c in pair.captions]).encode())
    assert captions.hexdigest() == (
        "f354354a73a8993d90602a8f3cb45c11bf83b3860c8cfeddacd90163ef52c415"
    )


def test_two_captions_a_scene_add_one_to_the_same_scenes(pairs: list[Pair]) -> None:
    config = CONFIG.model_copy(update={"captions_per_scene": 2})
    for two, one in zip(finished(config.read(seed=3)), pairs, strict=True):
        assert two.image == one.image
        assert two.captions[: len(one.captions)] == one.captions
        if two.split == "train":
            assert len({caption.lang for caption in two.captions}) == 2
            assert two == replace(one, captions=two.captions)
        else:
            assert two == one


@pytest.mark.parametrize("count", [1, 2, 3, 14])
def test_languages_and_sets_of_languages_are_covered_evenly(count: int) -> None:
    a_cycle = 14 * comb(13, count - 1)
    scenes = [languages_of_scene(LANGUAGES, count, i) for i in range(a_cycle)]
    assert all(len(set(languages)) == count for languages in scenes)
    for start in range(0, a_cycle, 14):  # in every round, not only over the whole
        a_round = Counter(lang for scene in scenes[start : start + 14] for lang in scene)
        assert set(a_round.values()) == {count}
        assert len(a_round) == 14
    sets = Counter(frozenset(scene) for scene in scenes)
    assert len(sets) == comb(14, count)
    assert set(sets.values()) == {count}
    assert languages_of_scene(LANGUAGES, count, a_cycle) == scenes[0]


def test_a_recipe_of_the_first_release_is_recorded_as_it_was() -> None:
    """The hash of a recipe tells whether a folder was built from it."""
    assert set(CONFIG.model_dump()) == {
        "kind",
        "train_scenes",
        "captions_per_scene",
        "test_scenes",
        "object_scenes",
        "image_size",
        "languages",
        "entailment",
    }
    assert {"per_scene", "unpaired"} <= set(HARD.model_dump())


def test_test_scenes_come_in_groups_that_differ_in_one_concept_of_a_subgroup(
    hard: list[Pair],
) -> None:
    subgroup = {c.names["en"]: c.subgroup for c in load_concepts(("en",), 400)}
    shown = [names_in(pair)[0] for pair in of_split(hard, "test")]
    assert len(set(shown)) == 18
    for start in range(0, 18, 4):
        group = shown[start : start + 4]
        common = frozenset.intersection(*group)
        assert len(common) == 3
        assert len({subgroup[name] for one in group for name in one - common}) == 1


def test_an_unpaired_name_is_in_no_training_caption_and_all_names_of_an_unpaired_scene_are_so(
    hard: list[Pair],
) -> None:
    def named(split: str, lang: str) -> set[str]:
        pairs = of_split(hard, split)
        captions = [c for pair in pairs for c in pair.captions if c.lang == lang]
        return {name for caption in captions for name in caption.text.split(", ")}

    plan = build_plan(HARD, seed=3)
    assert len(plan.paired) == 320
    for lang in LANGUAGES:
        unpaired = {plan.concepts[i].names[lang] for i in plan.unpaired[lang]}
        assert 25 <= len(unpaired) <= 55  # a half of the 80 on average
        assert not unpaired & (named("train", lang) | named("test", lang))
        assert named("unpaired", lang) and named("unpaired", lang) <= unpaired
    # Training shows and names them in other languages.
    trained = {name for lang in LANGUAGES for name in named("train", lang)}
    assert sum(plan.concepts[plan.unpaired["en"][0]].names[x] in trained for x in LANGUAGES) > 1


def test_sentence_scenes_are_the_test_scenes_with_a_sentence_around_the_same_names(
    hard: list[Pair],
) -> None:
    sentences = load_sentences()
    assert all(len(some) == 4 for some in sentences.values()) and list(sentences) == list(LANGUAGES)
    assert all(one.count("{}") == 1 for some in sentences.values() for one in some)
    plan = build_plan(HARD, seed=3)
    for index, pair in enumerate(of_split(hard, "sentences")):
        plain = of_split(hard, "test")[index]
        for caption, names in zip(pair.captions, plain.captions, strict=True):
            assert caption.lang == names.lang
            assert caption.text in {s.replace("{}", names.text) for s in sentences[caption.lang]}
    one, other = (draft_scene(plan, split, 2).load().image for split in ("test", "sentences"))
    assert one == other
