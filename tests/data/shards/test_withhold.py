"""Withheld captions: the requested share, never seen in training, each with its image in the pool."""

from collections import Counter, defaultdict

from shard_sets import make_pair

from mmalign.core.batch import Caption, Pair
from mmalign.data.shards.withhold import (
    Withheld,
    Withhold,
    choose_withheld,
    normalise,
    withheld_pairs,
    without_withheld,
)

FRACTION = Withhold(fraction=0.2)
VARIANTS = Withhold(fraction=0.4, variants=(("nb", "nn"), ("zh", "yue")))
LANGUAGES = ("en", "sw", "ja", "nb", "nn", "zh", "yue")


def make_pairs(count: int, languages: tuple[str, ...] = LANGUAGES) -> list[Pair]:
    return [make_pair(number, languages) for number in range(count)]


def split(
    pairs: list[Pair], config: Withhold, seed: int = 0
) -> tuple[Withheld, list[Pair], list[Pair]]:
    """The choice, the training pairs, and the withheld set."""
    withheld = choose_withheld(iter(pairs), config, seed)
    train = [without_withheld(pair, withheld) for pair in pairs]
    return withheld, train, list(withheld_pairs(iter(pairs), withheld))


def contents(pairs: list[Pair]) -> Counter[tuple[str, str, str]]:
    return Counter((p.picture, c.lang, c.text) for p in pairs for c in p.captions)


def test_about_the_requested_share_is_withheld() -> None:
    pairs = make_pairs(300)
    _, _, test = split(pairs, FRACTION)
    share = contents(test).total() / contents(pairs).total()
    # 2,100 independent draws: a standard deviation of 0.009.
    assert abs(share - 0.2) < 0.03
    by_language = Counter(c.lang for pair in test for c in pair.captions)
    assert all(abs(by_language[lang] / 300 - 0.2) < 0.1 for lang in LANGUAGES)


def test_withheld_and_training_captions_together_are_all_captions() -> None:
    pairs = make_pairs(40)
    _, train, test = split(pairs, FRACTION)
    assert contents(train) + contents(test) == contents(pairs)
    assert not contents(train) & contents(test)


def test_no_withheld_text_is_in_training_even_in_another_spelling() -> None:
    pairs = [
        Pair(**{**vars(pair), "captions": (*pair.captions, Caption("de", f"Bild {number % 7}"))})
        for number, pair in enumerate(make_pairs(60))
    ]
    withheld, train, test = split(pairs, FRACTION)
    trained_on = {normalise(c.text) for pair in train for c in pair.captions}
    measured = {normalise(c.text) for pair in test for c in pair.captions}
    assert measured
    assert not measured & trained_on
    in_train = {(pair.picture, c.lang) for pair in train for c in pair.captions}
    assert not in_train & withheld.chosen


def test_a_withheld_caption_whose_text_is_in_training_is_no_query() -> None:
    # Every image has the same German caption in another spelling; some are withheld, some stay.
    spellings = ("Ein  Hund", "ein hund", "EIN HUND", "\uff25in Hund")
    pairs = [
        Pair(
            **{
                **vars(pair),
                "captions": (Caption("en", f"dog {n}"), Caption("de", spellings[n % 4])),
            }
        )
        for n, pair in enumerate(make_pairs(40, ("en",)))
    ]
    withheld, train, test = split(pairs, FRACTION)
    assert any(lang == "de" for _, lang in withheld.chosen)
    assert {c.lang for pair in train for c in pair.captions} == {"en", "de"}
    assert {c.lang for pair in test for c in pair.captions} == {"en"}


def test_every_image_keeps_a_caption() -> None:
    few = [make_pair(n, LANGUAGES[: 1 + n % 2], f"picture {n // 3}") for n in range(90)]
    _, train, test = split(few, Withhold(fraction=0.95))
    assert all(pair.captions for pair in train)
    assert contents(test).total() > 20


def test_close_variants_are_withheld_together() -> None:
    _, _, test = split(make_pairs(80), VARIANTS)
    languages = {pair.picture: {c.lang for c in pair.captions} for pair in test}
    for together in (("nb", "nn"), ("zh", "yue")):
        both = sum(set(together) <= langs for langs in languages.values())
        assert both > 10
        assert not any(len(langs & set(together)) == 1 for langs in languages.values())
    # Languages that are in no group are withheld independently.
    assert any(len(langs & {"en", "sw"}) == 1 for langs in languages.values())


def test_an_image_keeps_all_of_a_variant_group_or_none() -> None:
    _, train, _ = split([make_pair(n, ("nb", "nn")) for n in range(30)], VARIANTS)
    assert all(len(pair.captions) == 2 for pair in train)  # withholding both would leave none


def test_captions_of_equal_images_are_withheld_together() -> None:
    pairs = [make_pair(n, ("en", "sw", "ja"), f"picture {n // 4}") for n in range(120)]
    withheld, train, _ = split(pairs, Withhold(fraction=0.4))
    seen: dict[tuple[str, str], set[bool]] = defaultdict(set)
    for before, after in zip(pairs, train, strict=True):
        kept = {c.lang for c in after.captions}
        for lang in ("en", "sw", "ja"):
            seen[before.picture, lang].add(lang in kept)
    assert all(len(states) == 1 for states in seen.values())
    assert {key for key, states in seen.items() if states == {False}} == withheld.chosen


def test_the_pool_holds_each_distinct_training_image_once() -> None:
    pairs = [make_pair(n, ("en", "sw"), f"picture {n // 2}") for n in range(40)]
    _, _, test = split(pairs, FRACTION)
    assert [pair.picture for pair in test] == [f"picture {n}" for n in range(20)]
    assert {pair.split for pair in test} == {"withheld"}
    assert any(not pair.captions for pair in test)
    # An image has the withheld captions of all its samples.
    assert max(len(pair.captions) for pair in test) == 2
    assert [pair.image for pair in test] == [pair.image for pair in pairs[::2]]


def test_a_caption_that_two_equal_images_share_is_one_query() -> None:
    twins = [make_pair(1, ("en", "sw"), "x"), make_pair(1, ("en", "sw"), "x")]
    withheld = Withheld(frozenset({("x", "sw")}), {}, frozenset())
    (pair,) = withheld_pairs(twins, withheld)
    assert [c.lang for c in pair.captions] == ["sw"]


def test_the_choice_depends_on_the_seed_alone() -> None:
    pairs = make_pairs(50)
    chosen = choose_withheld(iter(pairs), FRACTION, 0).chosen
    assert choose_withheld(reversed(pairs), FRACTION, 0).chosen == chosen
    assert choose_withheld(iter(pairs), FRACTION, 1).chosen != chosen
    # Further images change nothing for the earlier ones.
    longer = choose_withheld(iter(make_pairs(60)), FRACTION, 0).chosen
    assert {entry for entry in longer if entry[0] in {p.picture for p in pairs}} == chosen


def test_texts_that_differ_only_in_spelling_are_equal() -> None:
    assert normalise("  Ein\u00a0HUND\n") == normalise("ein hund") == "ein hund"
    assert normalise("\ufb01sh") == "fish"
    assert normalise("hund") != normalise("hünd")
