"""A protocol is compared by its fields and read as a sentence."""

from mmalign.results.protocol import difference, joined, sentence

OURS = {"how": "{pictures} pictures, seed {seed}.", "pictures": 5, "seed": 0}


def test_fields_stand_in_the_sentence_and_the_others_behind_it() -> None:
    assert sentence(OURS) == "5 pictures, seed 0."
    more = {**OURS, "mean_over": ["de", "sw"], "note": " Cut at 64 tokens."}
    assert sentence(more) == "5 pictures, seed 0. Mean over: de, sw. Cut at 64 tokens."
    # What a file holds is never looked up beyond the fields.
    assert sentence({"how": "{how.__class__} {missing} {0}"}) == "{how.__class__} {missing} {0}"


def test_the_first_field_that_differs_is_named() -> None:
    assert difference(OURS, dict(OURS)) is None
    assert difference(OURS, {**OURS, "seed": 1}) == "`seed` is 0, not 1"
    assert difference(OURS, {**OURS, "words": 3}) == "`words` is not recorded, not 3"
    assert difference({**OURS, "a": "x" * 99}, OURS) == "`a` differs; see `protocol` in both files"


def test_what_follows_from_the_model_may_differ() -> None:
    for field, value in (
        ("kept_step", 7),
        ("dev", "0.81"),
        ("note", " Cut at 64."),
        ("steps", 9),
        ("layer", 2),
    ):
        assert difference(OURS, {**OURS, field: value}) is None


def test_two_protocols_are_joined() -> None:
    both = joined(OURS, {"how": "Layer {layer}.", "layer": 3})
    assert sentence(both) == "5 pictures, seed 0. Layer 3."
