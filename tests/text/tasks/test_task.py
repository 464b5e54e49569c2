"""A sample of rows is drawn by their ids: the same in every language, whatever the order of the file."""

from mmalign.text.tasks.task import Example, sample


def rows(lang: str, count: int = 1000) -> list[Example]:
    """Sorted by label, as many files are."""
    return [Example(f"r{i}", lang, ("x",), "a" if i < count // 2 else "b") for i in range(count)]


def test_the_same_ids_are_drawn_in_every_language_and_order() -> None:
    english = sample(rows("en"), 100)
    german = sample(rows("de")[::-1], 100)
    assert len(english) == 100
    assert [one.id for one in english] == [one.id for one in german[::-1]]
    assert [int(one.id[1:]) for one in english] == sorted(int(one.id[1:]) for one in english)


def test_a_file_that_is_sorted_by_label_gives_all_labels() -> None:
    share = sum(one.target == "a" for one in sample(rows("en"), 100)) / 100
    assert 0.35 < share < 0.65


def test_a_larger_sample_holds_the_smaller_one_and_another_seed_draws_others() -> None:
    small, large = ({one.id for one in sample(rows("en"), n)} for n in (50, 200))
    assert small < large
    assert small != {one.id for one in sample(rows("en"), 50, seed=1)}


def test_without_a_size_or_with_too_large_a_one_all_are_taken() -> None:
    for size in (None, 10, 11):
        assert sample(rows("en", 10), size) == rows("en", 10)
