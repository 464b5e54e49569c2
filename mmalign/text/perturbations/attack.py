"""An adversarial search: small changes of words that make one classifier wrong.

    examples that the classifier predicts correctly
      -> every word left out once: the correct class's score falls most where the word matters most
      -> the best candidate for that word, then for the next word, ...
      -> the prediction flips (broken), or words, changes or queries run out (it holds)

It is black box (scores only) and greedy, as TextBugger (Li et al. 2019, arXiv 1812.05271) and TextFooler
(Jin et al. 2020, arXiv 1907.11932) do it with words of one language and Bumblebee in PolyGloss (Tan and Joty
2021, arXiv 2103.09593) with words of several. Ours differ in their candidates, `misspellings` and
`translated`, and in that a budget bounds the queries. The classifier is a neural network, so each round asks
it once for all open examples together. An example that holds may still be broken by another attack.

An example that is predicted wrongly without an attack costs no queries and is never a success of the attack.
One without any candidate cannot be attacked: leave it out (`is_attackable`), or it counts as one that holds.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import regex

from mmalign.core.config import Section
from mmalign.data.dictionaries.casing import base_language
from mmalign.data.dictionaries.read import Dictionary
from mmalign.text.perturbations.characters import (
    Alphabet,
    alphabet_of,
    clusters,
    edited,
    letter_positions,
)
from mmalign.text.perturbations.code_mix import tables_from, translations
from mmalign.text.perturbations.sampling import text_generator
from mmalign.text.perturbations.segments import is_word, put, segments, word_positions
from mmalign.text.perturbations.similar import similar as similar_to
from mmalign.text.perturbations.words import without
from mmalign.text.tasks.task import Example

Predict = Callable[[list[Example]], np.ndarray]
"""n examples -> (n, K) floats, a probability or its logarithm per class; the largest is predicted."""

Similar = Callable[[list[str], list[str]], np.ndarray]
"""n texts, n changed texts -> (n,) floats, for example the cosines of a reference encoder."""

Candidates = Callable[[str, np.random.Generator], list[str]]
"""Word -> different words to try instead of it, the word itself not among them; may be none."""

_LEAST_LETTERS = 3
_HAN = regex.compile(r"\p{Han}")


class AttackConfig(Section):
    """How hard the search tries and what it may change."""

    kind: Literal["attack"]
    candidates: Literal["characters", "code_mix"]
    """Misspellings, or translations from dictionaries."""
    budget: int = pydantic.Field(default=200, ge=2)
    """Most queries per example, the first one on the unchanged example not counted."""
    max_words: float = pydantic.Field(default=0.3, gt=0, le=1)
    """Most words that may change, as a share of the example's words; one always may."""
    options: int = pydantic.Field(default=8, ge=1)
    """Most candidates per word."""
    max_edits: int = pydantic.Field(default=1, ge=1, le=3)
    """Of `characters`: most edits of a word; its first letter never changes."""
    min_similarity: float | None = None
    """Least similarity of a changed text and the original, where a measure of it is given."""
    folder: str | None = None
    """Of `code_mix`: folder with dictionaries from English; relative to where the command runs."""
    languages: tuple[str, ...] | None = None
    """Of `code_mix`: what to mix in; by default every language of the folder but that of training."""

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
    """The result of the search for one example.

    Attributes:
        example: with the changes found; where it holds, those that lowered the correct class's score.
        was_correct: the prediction was correct before.
        broken: it was, and is wrong now.
        queries: how many changed examples the classifier was asked about.
    """

    example: Example
    was_correct: bool
    broken: bool
    queries: int


def candidates_for(config: AttackConfig, examples: Sequence[Example]) -> Candidates | None:
    """The candidates for words of these examples, which are of one language; None: it has none.

    Raises:
        UserError: the folder of dictionaries is missing, or a file in it is broken.
    """
    lang, texts = examples[0].lang, [text for one in examples for text in one.texts]
    if config.candidates == "characters":
        return partial(
            misspellings,
            alphabet=alphabet_of(texts),
            edits=config.max_edits,
            most=config.options,
            lang=lang,
        )
    tables = tables_from(lang, Path(config.folder or ""), config.languages, tested=texts)
    if tables is None:
        return None
    return partial(translated, tables=tables, lang=lang, most=config.options)


def is_attackable(example: Example, candidates: Candidates, seed: int) -> bool:
    """Whether a word of the example has a candidate; the same for every classifier."""
    parts = [segments(text) for text in example.texts]
    return any(_options(parts, candidates, text_generator(seed, 0, example.id, 0)).values())


def _options(
    parts: Sequence[list[str]], candidates: Candidates, rng: np.random.Generator
) -> dict[tuple[int, int], list[str]]:
    # (number of the text, of the segment) -> candidates, for every word.
    words = [(text, i) for text, own in enumerate(parts) for i in word_positions(own)]
    return {(text, i): candidates(parts[text][i], rng) for text, i in words}


def misspellings(
    word: str, rng: np.random.Generator, alphabet: Alphabet, edits: int, most: int, lang: str
) -> list[str]:
    """Up to `most` random misspellings of a word, each of at most `edits` edits behind its first letter.

    The edits are those of `characters.py`. Readers still recognise words whose first letter and most others
    are correct (Pruthi et al. 2019, arXiv 1905.11268, who keep the last letter too). In words of one or two
    letters, and in words with Chinese characters, which are typed by their sound, one letter becomes a
    similar one instead (`similar.py`); in most alphabets there is none. Words with a digit have no
    misspelling, because another number means something else.
    """
    characters = clusters(word)
    letters = letter_positions(characters)
    if any(map(str.isdigit, word)):
        return []
    # A dictionary as an ordered set: edits may repeat one another, or undo themselves.
    found: dict[str, None] = {}
    if len(letters) < _LEAST_LETTERS or _HAN.search(word):
        base = base_language(lang)
        alike = [(i, one) for i in letters for one in similar_to(characters[i], base)]
        for n in rng.permutation(len(alike))[:most]:
            i, one = alike[n]
            found["".join([*characters[:i], one, *characters[i + 1 :]])] = None
        return list(found)
    inner = letters[1:]
    for _ in range(most):
        count = min(int(rng.integers(1, edits + 1)), len(inner))
        positions = rng.choice(inner, size=count, replace=False).tolist()
        found["".join(edited(characters, positions, letters, rng, alphabet))] = None
    return [one for one in found if one != word]


def translated(
    word: str, _rng: np.random.Generator, tables: dict[str, Dictionary], lang: str, most: int
) -> list[str]:
    """Up to `most` translations of a word: the safest of every language, then the second of each, ..."""
    ranks = zip_longest(*translations(word, tables, lang))
    found = dict.fromkeys(one for rank in ranks for one in rank if one is not None and one != word)
    return list(found)[:most]


def _without(parts: list[str], position: int) -> list[str]:
    left = without(parts, {position})
    return left if any(map(is_word, left)) else parts


def attack(
    examples: Sequence[Example],
    correct: Sequence[int],
    predict: Predict,
    candidates: Candidates,
    config: AttackConfig,
    seed: int,
    similar: Similar | None = None,
) -> list[Attacked]:
    """Search for the change that breaks each example; every text of an example may change.

    Args:
        examples: of classification or multiple choice, whose predictions are one class per example.
        correct: the correct class of each example, a column of what `predict` returns.
        similar: compared with `config.min_similarity`; give both or neither.
    """
    assert (similar is None) == (config.min_similarity is None), "give both or neither"
    results = [Attacked(one, was_correct=False, broken=False, queries=0) for one in examples]
    if not examples:
        return results
    searches = {
        i: _search(examples[i], correct[i], float(scores_K[correct[i]]), candidates, config, seed)
        for i, scores_K in enumerate(predict(list(examples)))
        if scores_K.argmax() == correct[i]
    }
    # All searches take the same steps in the same order, so that one call answers a step of all of them.
    requests = {i: next(search) for i, search in searches.items()}
    while requests:
        flat: list[Any] = [one for own in requests.values() for one in own]
        answers = np.empty((0, 0))
        if flat and isinstance(flat[0], Example):
            answers = np.asarray(predict(flat))
        elif flat and similar is not None:
            answers = np.asarray(similar(*map(list, zip(*flat, strict=True))))
        ends = list(accumulate(len(own) for own in requests.values()))
        for i, answer in zip(tuple(requests), np.split(answers, ends[:-1]), strict=True):
            try:
                requests[i] = searches[i].send(answer)
            except StopIteration as done:
                results[i] = done.value
                del requests[i]
    return results


def _search(
    example: Example,
    correct: int,
    score: float,
    candidates: Candidates,
    config: AttackConfig,
    seed: int,
) -> Generator[Sequence[Example | tuple[str, str]], np.ndarray, Attacked]:
    """The search for one example, as a coroutine.

    It yields changed examples, whose scores (n, K) it is sent, or pairs of an original text and a changed
    one, whose similarities (n,) it is sent.

    Args:
        score: the correct class's, of the unchanged example.
    """
    rng = text_generator(seed, 0, example.id, 0)
    parts = [segments(text) for text in example.texts]  # with the changes so far
    options = _options(parts, candidates, rng)
    open_words = [word for word, found in options.items() if found]
    # Ranking costs one query per word and may cost half the budget: if there are more, some are drawn.
    queue = [open_words[n] for n in sorted(rng.permutation(len(open_words))[: config.budget // 2])]
    changes_left = max(1, int(config.max_words * len(options)))
    broken = False

    def variant(text: int, changed: list[str]) -> Example:
        texts = ["".join(changed if n == text else own) for n, own in enumerate(parts)]
        return replace(example, texts=tuple(texts))

    # Rank the words by how far the correct class's score falls without them; a lone word needs no rank.
    trials = [variant(text, _without(parts[text], i)) for text, i in queue] if queue[1:] else []
    scores_NK = yield trials
    queries = len(trials)
    if trials:
        queue = [queue[n] for n in np.argsort(scores_NK[:, correct], kind="stable")]
    for text, i in queue:
        if not changes_left or queries >= config.budget:
            break  # it holds
        changed = [put(parts[text], i, word) for word in options[text, i]]
        if config.min_similarity is not None:
            similar_N = yield [(example.texts[text], "".join(one)) for one in changed]
            enough = zip(changed, similar_N.tolist(), strict=True)
            changed = [one for one, value in enough if value >= config.min_similarity]
        changed = changed[: config.budget - queries]  # the last word may get fewer tries
        scores_NK = yield [variant(text, one) for one in changed]
        queries += len(changed)
        # Asked with an empty list too: all searches must take the same steps.
        if not changed:
            continue
        flipped_N = scores_NK.argmax(axis=1) != correct
        # A candidate that flips the prediction comes first, then the one with the lowest score.
        best = int(np.lexsort((scores_NK[:, correct], ~flipped_N))[0])
        if flipped_N[best] or scores_NK[best, correct] < score:
            parts[text], score = changed[best], float(scores_NK[best, correct])
            changes_left -= 1
        if flipped_N[best]:
            broken = True
            break
    return Attacked(variant(0, parts[0]), True, broken, queries)
