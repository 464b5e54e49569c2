"""The tasks' labels are true in every language, and no scene of a test stands in training."""

from collections import Counter, defaultdict

import pytest

from mmalign.core.errors import UserError
from mmalign.data.sources.emoji_concepts import LANGUAGES, load_concepts
from mmalign.data.sources.emoji_scenes import EmojiScenes, EntailmentSizes, build_plan
from mmalign.data.sources.emoji_tasks import CATEGORY, ENTAILMENT, LabelledTexts, read_tasks

CONFIG = EmojiScenes(
    kind="emoji_scenes",
    test_scenes=50,
    entailment=EntailmentSizes(train=400, dev=100, test=200),
)
CONCEPTS = load_concepts(LANGUAGES, 200)
INDEX = {(lang, c.names[lang]): i for i, c in enumerate(CONCEPTS) for lang in LANGUAGES}
Rows = dict[tuple[str, str], list[LabelledTexts]]


def read(task: str, config: EmojiScenes = CONFIG, seed: int = 3) -> Rows:
    rows: Rows = defaultdict(list)
    for name, split, row in read_tasks(config, seed):
        if name == task:
            rows[split, row.lang].append(row)
    return dict(rows)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return read(ENTAILMENT)


def shown(row: LabelledTexts) -> frozenset[int]:
    return frozenset(INDEX[row.lang, name] for name in row.texts[0].split(", "))


def asked(row: LabelledTexts) -> int:
    return INDEX[row.lang, row.texts[1]]


def test_the_category_task_trains_on_english_and_tests_on_the_other_languages() -> None:
    rows = read(CATEGORY)
    assert set(rows) == {("train", "en")} | {("test", lang) for lang in LANGUAGES[1:]}
    assert all(len(examples) == 200 for examples in rows.values())
    assert Counter(row.target for row in rows["train", "en"]) == {
        "animals_nature": 44,
        "food_drink": 44,
        "travel_places": 34,
        "objects": 46,
        "activities": 22,
        "people_body": 10,
    }
    unicorn = {
        lang: row.texts for (_, lang), some in rows.items() for row in some if row.id == "1f984"
    }
    assert (unicorn["en"], unicorn["de"]) == (("unicorn",), ("einhorn",))


def test_splits_have_the_sizes_asked_for_and_only_training_is_in_one_language(rows: Rows) -> None:
    wanted = {("train", "en"): 400}
    wanted |= {(split, lang): n for split, n in (("dev", 100), ("test", 200)) for lang in LANGUAGES}
    assert {key: len(examples) for key, examples in rows.items()} == wanted


def test_dev_and_test_rows_ask_the_same_in_every_language(rows: Rows) -> None:
    for split in ("dev", "test"):
        english = rows[split, "en"]
        for lang in LANGUAGES:
            for row, other in zip(rows[split, lang], english, strict=True):
                assert (row.id, row.target) == (other.id, other.target)
                assert (shown(row), asked(row)) == (shown(other), asked(other))
    ids = [row.id for (_, lang), examples in rows.items() if lang == "en" for row in examples]
    assert len(set(ids)) == len(ids)


def test_the_order_of_a_caption_differs_between_languages(rows: Rows) -> None:
    first = [
        tuple(INDEX[lang, rows["test", lang][i].texts[0].split(", ")[0]] for lang in LANGUAGES)
        for i in range(200)
    ]
    assert all(len(set(names)) > 1 for names in first)


def test_labels_are_true_in_every_language(rows: Rows) -> None:
    for row in (row for examples in rows.values() for row in examples):
        assert row.target == ("contains" if asked(row) in shown(row) else "absent")


def test_an_absent_name_is_in_no_caption_of_any_language(rows: Rows) -> None:
    """Also where the premise is in one language and the hypothesis in another, as far as whole names go."""
    for row in (row for examples in rows.values() for row in examples if row.target == "absent"):
        names = CONCEPTS[asked(row)].names
        for other in (CONCEPTS[i].names for i in shown(row)):
            assert not any(names[x].casefold() in other[x].casefold() for x in LANGUAGES)
            assert not set(names.values()) & set(other.values())


def test_pairs_that_read_alike_would_be_drawn_without_the_guard() -> None:
    rows = read(ENTAILMENT, big(30_000))["train", "en"]
    drawn = [(asked(row), other) for row in rows if row.target == "absent" for other in shown(row)]
    different = [(i, j) for i in range(200) for j in range(200) if i != j]
    names = [CONCEPTS[i].names for i in range(200)]
    parts = {(i, j) for i, j in different if any(names[i][x] in names[j][x] for x in LANGUAGES)}
    homographs = {(i, j) for i, j in different if set(names[i].values()) & set(names[j].values())}
    for pairs in (parts, homographs):
        assert len(pairs) * len(drawn) / len(different) > 4  # so many would be expected by chance
        assert not pairs & set(drawn)


def big(train: int) -> EmojiScenes:
    sizes = EntailmentSizes(train=train, dev=0, test=0)
    return CONFIG.model_copy(update={"entailment": sizes})


def test_labels_are_balanced_and_half_of_the_absent_are_hard(rows: Rows) -> None:
    for examples in rows.values():
        absent = [row for row in examples if row.target == "absent"]
        hard = [
            row
            for row in absent
            if CONCEPTS[asked(row)].group in {CONCEPTS[i].group for i in shown(row)}
        ]
        assert len(absent) * 2 == len(examples)
        assert len(hard) * 2 == len(absent)


def test_the_hypothesis_alone_tells_next_to_nothing() -> None:
    counts: dict[str, Counter[object]] = defaultdict(Counter)
    for row in read(ENTAILMENT, big(8000))["train", "en"]:
        counts[CONCEPTS[asked(row)].group][row.target] += 1
    assert sum(max(labels.values()) for labels in counts.values()) / 8000 < 0.54


def test_no_combination_stands_in_two_splits(rows: Rows) -> None:
    of_split = {
        split: {shown(row) for row in rows[split, "en"]} for split in ("train", "dev", "test")
    }
    assert len(of_split["dev"]) == 100
    assert len(of_split["test"]) == 200
    assert not of_split["train"] & of_split["dev"]
    assert not of_split["train"] & of_split["test"]
    assert not of_split["dev"] & of_split["test"]


def test_training_keeps_out_of_what_is_tested() -> None:
    """5,000 and 5,000 of 19,900 combinations: training rows that ignored this would show about 50 of each."""
    config = CONFIG.model_copy(
        update={
            "test_scenes": 5_000,
            "languages": ("en",),
            "per_scene": 2,
            "entailment": EntailmentSizes(train=200, dev=0, test=5_000),
        }
    )
    rows = read(ENTAILMENT, config, seed=0)
    tested = {frozenset(combination) for combination in build_plan(config, 0).held_out}
    train = {shown(row) for row in rows["train", "en"]}
    assert not train & tested
    assert not train & {shown(row) for row in rows["test", "en"]}


def test_the_same_seed_gives_the_same_rows_and_a_row_does_not_depend_on_others(rows: Rows) -> None:
    assert read(ENTAILMENT) == rows
    assert read(ENTAILMENT, seed=4)["train", "en"] != rows["train", "en"]
    fewer = CONFIG.model_copy(
        update={"entailment": EntailmentSizes(train=300, dev=100, test=200), "train_scenes": 7}
    )
    assert read(ENTAILMENT, fewer)["train", "en"] == rows["train", "en"][:300]
    assert read(ENTAILMENT, fewer)["test", "de"] == rows["test", "de"]


def test_mistakes_fail_at_once() -> None:
    with pytest.raises(UserError, match="each language once"):
        read_tasks(CONFIG.model_copy(update={"languages": ("en", "en")}), seed=0)


def test_the_tasks_leave_out_concepts_that_a_language_never_names_in_pretraining() -> None:
    config = CONFIG.model_copy(update={"concepts": 400, "per_scene": 4, "unpaired": 0.2})
    plan = build_plan(config, seed=3)
    names = {plan.concepts[i].names["de"] for i in plan.paired}
    category = read(CATEGORY, config)["test", "de"]
    assert {row.texts[0] for row in category} == names and len(category) == 320
    for row in read(ENTAILMENT, config)["test", "de"]:
        assert {*row.texts[0].split(", "), row.texts[1]} <= names
