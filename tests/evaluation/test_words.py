"""Words and their translations, with an encoder that can be looked through."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from evaluation.alignment_cases import unit

from mmalign.core.errors import UserError
from mmalign.evaluation import words
from mmalign.evaluation.words import WordsConfig, measure_words
from mmalign.results.results import Results

MEANING = {"dog": 0, "Hund": 0, "Köter": 0, "cat": 1, "Katze": 1, "tree": 2, "Baum": 2, "mbwa": 0}


def encode(texts: Sequence[str]) -> np.ndarray:
    """A word is the axis of its meaning."""
    return np.eye(4, dtype=np.float32)[[MEANING[text] for text in texts]]


def collapsed(texts: Sequence[str]) -> np.ndarray:
    return unit(np.ones((len(texts), 4)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = ["dog\tHund\t2", "dog\tKöter\t1", "cat\tKatze\t1", "tree\tBaum\t1", "Baum\tBaum\t1"]
    (tmp_path / "en-de.tsv").write_text("\n".join(["en\ttranslation\tsenses", *rows]))
    (tmp_path / "en-sw.txt").write_text("dog mbwa\ncat Katze\ntree Katze\n")  # as MUSE writes it
    return tmp_path


def measured(folder: Path, encoder: object = encode, **fields: object) -> Results:
    results = Results(suite="x", model={})
    config = WordsConfig(name="d", folder=str(folder), **fields)  # type: ignore[arg-type]
    measure_words(encoder, config, results)  # type: ignore[arg-type]
    return results


def values(results: Results) -> dict[str, float]:
    return {name.split("/")[2]: value for name, value in results.metrics.items()}


def test_any_translation_is_right_and_both_directions_are_asked(folder: Path) -> None:
    results = measured(folder)
    found = values(results)
    assert found["en-de"] == found["de-en"] == 1
    assert found["en-sw"] == pytest.approx(2 / 3)  # tree, Katze there, is as far from mbwa
    assert found["sw-en"] == 1  # Katze finds cat, one of its two
    assert found["mean"] == pytest.approx((1 + 1 + 2 / 3 + 1) / 4)
    counts = {name.split("/")[2]: count for name, count in results.counts.items()}
    assert counts == {"en-de": 3, "de-en": 4, "en-sw": 3, "sw-en": 2, "mean": 12}
    assert results.chance["words/d/en-de/translation@1"] == pytest.approx((2 + 1 + 1) / 3 / 4)
    assert results.chance["words/d/sw-en/translation@1"] == pytest.approx((1 + 2) / 2 / 3)
    assert set(results.ci95) == {f"words/d/{p}/translation@1" for p in found if p != "mean"}


def test_the_model_is_called_before_the_ranks_part(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under ZeRO 3 a call gathers weights from all ranks: with other numbers of languages they would hang."""
    calls: list[str] = []
    inner = words.map_over_ranks

    def part(*args: object) -> object:
        calls.append("ranks part")
        return inner(*args)  # type: ignore[arg-type]

    def called(texts: Sequence[str]) -> np.ndarray:
        calls.append("model")
        return encode(texts)

    monkeypatch.setattr(words, "map_over_ranks", part)
    assert values(measured(folder, called)) == values(measured(folder))
    assert "model" in calls and calls.index("ranks part") > max(
        i for i, name in enumerate(calls) if name == "model"
    )


def test_words_that_all_look_alike_find_nothing(folder: Path) -> None:
    assert set(values(measured(folder, collapsed, languages=("de",))).values()) == {0.0}


def test_english_words_are_drawn_by_the_seed(folder: Path) -> None:
    asked: list[str] = []

    def listen(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return encode(texts)

    draws = []
    for seed in (0, 0, 1, 2, 3):
        asked.clear()
        results = measured(folder, listen, languages=("de",), words=2, seed=seed)
        draws.append(tuple(asked))
        assert results.counts["words/d/en-de/translation@1"] == 2
        assert ("Köter" in asked) == ("dog" in asked)  # all translations come with a word
    assert draws[0] == draws[1] and len(set(draws)) > 1


def test_dictionaries_that_cannot_be_used_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "en-fr.tsv").write_text("en\ttranslation\ndog\tchien\n")
    with pytest.raises(UserError, match=r"the dictionary to `fr` in .* has fewer than two"):
        measured(folder)
    assert values(measured(folder, languages=("de",)))["mean"] == 1
    with pytest.raises(UserError, match="no dictionary to `es`; it has those to de, fr, sw"):
        measured(folder, languages=("es",))
    with pytest.raises(UserError, match="nowhere"):
        measured(tmp_path / "nowhere")
