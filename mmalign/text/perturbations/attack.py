"""An adversarial search: small changes of words that make one classifier wrong.

    examples that the classifier gets right
      -> every word left out once: the right class's score falls most where the word counts most
      -> that word's best candidate taken, then the next word's, ...
      -> the prediction flips (broken), or words, changes or queries run out (it holds)

It is black box (scores only) and greedy, as TextBugger (Li et al. 2019, arXiv 1812.05271) and TextFooler
(Jin et al. 2020, arXiv 1907.11932) do it with words of one language and Bumblebee in PolyGloss (Tan and Joty
2021, arXiv 2103.09593) with words of several. Ours differ in their candidates, see `candidates.py`, and in
that a budget bounds the queries. The classifier is a neural network, so each round asks it once for all open
examples together. Failing to break an example proves nothing about other attacks.

An example that is wrong already stays wrong and costs nothing: it is never a success of the attack.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic

from mmalign.core.config import Section
from mmalign.text.perturbations.candidates import Candidates, misspellings, translated
from mmalign.text.perturbations.characters import alphabet_of
from mmalign.text.perturbations.code_mix import tables_from
from mmalign.text.perturbations.sampling import text_generator
from mmalign.text.perturbations.segments import is_word, put, segments, word_places
from mmalign.text.perturbations.words import without
from mmalign.text.tasks.example import Example

Predict = Callable[[list[Example]], np.ndarray]
"""n examples -> (n, K) floats, a probability or its logarithm for each class; the largest is predicted."""

Similar = Callable[[list[str], list[str]], np.ndarray]
"""n texts, n changed texts -> (n,) floats, for example the cosines of a reference encoder."""


Place = tuple[int, int]
"""A word of an example: number of the text, number of the segment in it."""


class AttackConfig(Section):
    """How hard the search tries and what it may change."""

    kind: Literal["attack"]
    candidates: Literal["characters", "code_mix"]
    """Misspellings, or translations from dictionaries."""
    budget: int = pydantic.Field(default=200, ge=2)
    """Most queries an example, the first one on the unchanged example not counted."""
    max_words: float = pydantic.Field(default=0.3, gt=0, le=1)
    """Most words that may change, as a share of the example's words; one always may."""
    options: int = pydantic.Field(default=8, ge=1)
    """Most candidates a word."""
    max_edits: int = pydantic.Field(default=1, ge=1, le=3)
    """Of `characters`: most edits of a word; its first letter never changes."""
    min_similarity: float | None = None
    """Least similarity of a changed text and the original, where a measure of it is given."""
    folder: str | None = None
    """Of `code_mix`: folder with dictionaries from English; relative to where the command runs."""
    languages: tuple[str, ...] | None = None
    """Of `code_mix`: what to mix in; by default English and every language of the folder."""

    @pydantic.model_validator(mode="after")
    def _has_dictionaries(self) -> "AttackConfig":
        if self.candidates == "code_mix" and self.folder is None:
            raise ValueError("`code_mix` needs `folder`, the folder of its dictionaries")
        return self

    @property
    def name(self) -> str:
        """The attack's name in metrics, for example `attack_characters`."""
        return f"{self.kind}_{self.candidates}"


@dataclass(frozen=True)
class Attacked:
    """What the search made of one example.

    Attributes:
        example: with the changes found; where it holds, those that lowered the right class's score.
        broken: it was right before and is wrong now.
        queries: how many changed examples the classifier was asked about.
    """

    example: Example
    broken: bool
    queries: int


def candidates_for(config: AttackConfig, examples: Sequence[Example]) -> Candidates | None:
    """The candidates for words of these examples, which are of one language; None: it has none.

    Raises:
        UserError: the folder of dictionaries is missing, or a file in it is broken.
    """
    if config.candidates == "characters":
        alphabet = alphabet_of(text for example in examples for text in example.texts)
        return partial(misspellings, alphabet=alphabet, edits=config.max_edits, most=config.options)
    lang = examples[0].lang
    tables = tables_from(lang, Path(config.folder or ""), config.languages)
    if tables is None:
        return None
    return partial(translated, tables=tables, lang=lang, most=config.options)


def attack(
    examples: Sequence[Example],
    right: Sequence[int],
    predict: Predict,
    candidates: Candidates,
    config: AttackConfig,
    seed: int,
    similar: Similar | None = None,
) -> list[Attacked]:
    """Search for the change that breaks each example; every text of an example may change.

    Args:
        examples: of classification or multiple choice, whose predictions are one class an example.
        right: the right class of each example, a column of what `predict` returns.
        similar: compared with `config.min_similarity`; give both or neither.
    """
    assert (similar is None) == (config.min_similarity is None), "give both or neither"
    if not examples:
        return []
    searches = {
        i: _start(examples[i], right[i], scores_K, candidates, config, seed)
        for i, scores_K in enumerate(predict(list(examples)))
        if scores_K.argmax() == right[i]
    }
    unfinished = list(searches.values())
    _rank(unfinished, predict)
    while unfinished := [one for one in unfinished if one.goes_on(config.budget)]:
        words = _words_to_try(unfinished, config, similar)
        trials = [
            [one.with_word(word) for word in found]
            for one, found in zip(unfinished, words, strict=True)
        ]
        for one, found, scores_NK in zip(unfinished, words, _ask(predict, trials), strict=True):
            one.take(found, scores_NK)
    return [
        searches[i].result() if i in searches else Attacked(example, broken=False, queries=0)
        for i, example in enumerate(examples)
    ]


@dataclass
class _Search:
    """Where the search for one example stands.

    Attributes:
        parts: the segments of every text, with the changes so far.
        options: the candidates of the words that have some.
        queue: the words still to change, most important first.
        changes_left: how many words may still change.
        score: the right class's, with the changes so far.
        place: the word that is being changed.
    """

    example: Example
    right: int
    parts: list[list[str]]
    options: dict[Place, list[str]]
    queue: list[Place]
    changes_left: int
    score: float
    place: Place = (0, 0)
    queries: int = 0
    broken: bool = False

    def goes_on(self, budget: int) -> bool:
        return bool(self.queue and self.changes_left and self.queries < budget and not self.broken)

    def next_word(self) -> list[str]:
        """The candidates of the next word in the queue."""
        self.place = self.queue.pop(0)
        return self.options[self.place]

    def with_word(self, word: str) -> Example:
        """The example with a candidate in place of the current word."""
        text, place = self.place
        return self._with_text(text, put(self.parts[text], place, word))

    def without_word(self, text: int, place: int) -> Example:
        """The example without one word; as it is where nothing would be left of its text."""
        left = without(self.parts[text], {place})
        return self._with_text(text, left if any(map(is_word, left)) else self.parts[text])

    def take(self, words: list[str], scores_NK: np.ndarray) -> None:
        """Keep the candidate that flips the prediction or lowers the right class's score most."""
        self.queries += len(words)
        if not words:
            return
        flipped = scores_NK.argmax(axis=1) != self.right
        best = int(np.lexsort((scores_NK[:, self.right], ~flipped))[0])
        if flipped[best] or scores_NK[best, self.right] < self.score:
            text, place = self.place
            self.parts[text] = put(self.parts[text], place, words[best])
            self.score = float(scores_NK[best, self.right])
            self.changes_left -= 1
            self.broken = bool(flipped[best])

    def result(self) -> Attacked:
        texts = tuple("".join(parts) for parts in self.parts)
        return Attacked(replace(self.example, texts=texts), self.broken, self.queries)

    def _with_text(self, text: int, parts: list[str]) -> Example:
        texts = ["".join(parts if i == text else own) for i, own in enumerate(self.parts)]
        return replace(self.example, texts=tuple(texts))


def _start(
    example: Example,
    right: int,
    scores_K: np.ndarray,
    candidates: Candidates,
    config: AttackConfig,
    seed: int,
) -> _Search:
    """A search that has not asked yet. Ranking may cost half the budget: more words are left to chance."""
    rng = text_generator(seed, 0, example.id, 0)
    parts = [segments(text) for text in example.texts]
    words = [(i, place) for i, own in enumerate(parts) for place in word_places(own)]
    options = {(i, place): candidates(parts[i][place], rng) for i, place in words}
    open_words = [place for place in words if options[place]]
    queue = [open_words[i] for i in sorted(rng.permutation(len(open_words))[: config.budget // 2])]
    changes = max(1, int(config.max_words * len(words)))
    return _Search(example, right, parts, options, queue, changes, float(scores_K[right]))


def _rank(searches: list[_Search], predict: Predict) -> None:
    """Order each queue by how far the right class's score falls without the word."""
    several = [one for one in searches if len(one.queue) > 1]
    trials = [[one.without_word(*place) for place in one.queue] for one in several]
    for one, scores_NK in zip(several, _ask(predict, trials), strict=True):
        most_important_first = np.argsort(scores_NK[:, one.right], kind="stable")
        one.queue = [one.queue[i] for i in most_important_first]
        one.queries += len(scores_NK)


def _words_to_try(
    searches: list[_Search], config: AttackConfig, similar: Similar | None
) -> list[list[str]]:
    """The candidates of each search's next word that are similar enough and that its budget pays for."""
    words = [one.next_word() for one in searches]
    if similar is not None and config.min_similarity is not None:
        words = _similar_enough(searches, words, similar, config.min_similarity)
    return [
        found[: config.budget - one.queries] for one, found in zip(searches, words, strict=True)
    ]


def _similar_enough(
    searches: list[_Search], words: list[list[str]], similar: Similar, least: float
) -> list[list[str]]:
    """The candidates with which the changed text is as similar to its original as `least`."""
    originals, changed = [], []
    for one, found in zip(searches, words, strict=True):
        text, _ = one.place
        originals += [one.example.texts[text]] * len(found)
        changed += [one.with_word(word).texts[text] for word in found]
    if not changed:
        return words
    enough = iter((np.asarray(similar(originals, changed)) >= least).tolist())
    return [[word for word in found if next(enough)] for found in words]


def _ask(predict: Predict, trials: list[list[Example]]) -> list[np.ndarray]:
    """The scores of every search's trials, (n, K) each, from one call."""
    flat = [trial for own in trials for trial in own]
    if not flat:
        return [np.empty((0, 0)) for _ in trials]
    scores_NK = np.asarray(predict(flat))
    ends = list(accumulate(len(own) for own in trials))
    return np.split(scores_NK, ends[:-1])
