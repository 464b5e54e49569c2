"""The rule `balance` of `mmalign data select`: at most so many captions of a word, and of a language.

    word list of each language -> texts of chosen captions: which words each has -> captions of each word
        -> probability of a caption -> drawn with a seed

MetaCLIP's curation (Xu et al. 2024, arXiv 2309.16671; per language: Chuang et al. 2025, arXiv 2507.22062):
the captions of a word that is in n of them are kept with the probability min(1, t / n), and a caption if any
of its words keeps it. Frequent words are flattened and rare ones stay complete.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import regex

from mmalign.core.console import track
from mmalign.core.errors import UserError
from mmalign.core.languages import canonical_language, likely_script
from mmalign.core.workers import map_in_processes
from mmalign.data.select.choice import Choice
from mmalign.data.select.rules import Balance
from mmalign.data.select.source import ChosenFrom
from mmalign.data.shards.jobs import Job, read_shard, shard_jobs
from mmalign.data.shards.reader import UnusableSample
from mmalign.data.shards.withhold import normalise

# Languages of these scripts put no spaces between words (ISO 15924).
_WITHOUT_SPACES = {"Jpan", "Hans", "Hant", "Hani", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"}
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")


@dataclass(frozen=True)
class WordList:
    """The words or phrases of one language, and how they are found in a text."""

    number_of: Mapping[str, int]
    has_spaces: bool
    longest: int  # words of a phrase, or characters where there are no spaces

    @classmethod
    def read(cls, path: str, lang: str, first: int) -> "WordList":
        """One entry per line of a UTF-8 file; its words are numbered from `first`."""
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"balance.words.{lang}: {path} cannot be read ({error})") from None
        has_spaces = likely_script(lang) not in _WITHOUT_SPACES
        entries = [_units(line, has_spaces) for line in lines]
        known = dict.fromkeys(_joined(one, has_spaces) for one in entries if one)
        if not known:
            raise UserError(f"balance.words.{lang}: {path} holds no words; write one per line")
        return cls({e: first + n for n, e in enumerate(known)}, has_spaces, max(map(len, entries)))

    def find(self, text: str) -> set[int]:
        """The numbers of the entries that occur in a text."""
        units = _units(text, self.has_spaces)
        phrases = (
            _joined(units[start:stop], self.has_spaces)
            for start in range(len(units))
            for stop in range(start + 1, min(start + self.longest, len(units)) + 1)
        )
        return {self.number_of[phrase] for phrase in phrases if phrase in self.number_of}


def _units(text: str, has_spaces: bool) -> list[str]:
    words = _WORD.findall(normalise(text))
    return words if has_spaces else list("".join(words))


def _joined(units: list[str], has_spaces: bool) -> str:
    return (" " if has_spaces else "").join(units)


def balance(rule: Balance, source: ChosenFrom, choice: Choice, processes: int) -> None:
    rng = np.random.default_rng(rule.seed)
    if rule.words:
        _cap_words(rule, source, choice, processes, rng)
    if rule.captions_per_language is not None:
        most = rule.captions_per_language
        draw_C = rng.random(len(source.language_C))
        for number, lang in enumerate(source.languages):
            captions = np.flatnonzero(choice.caption_C & (source.language_C == number))
            surplus = captions[np.argsort(draw_C[captions], kind="stable")[most:]]
            choice.remove_captions(surplus, choice.reason(f"over {most} captions in {lang}"))
    choice.settle()


def _cap_words(
    rule: Balance, source: ChosenFrom, choice: Choice, processes: int, rng: np.random.Generator
) -> None:
    lists: dict[str, WordList] = {}
    limit_E: list[int] = []
    for lang, path in rule.words.items():
        words = WordList.read(path, lang, len(limit_E))
        lists[canonical_language(lang)] = words
        most = rule.most[lang] if isinstance(rule.most, dict) else rule.most
        limit_E += [most] * len(words.number_of)
    word_M, count_C = _matches(source, lists, processes)
    chosen_C = choice.caption_C
    caption_M = np.repeat(np.arange(len(count_C)), count_C)
    uses_E = np.bincount(word_M[chosen_C[caption_M]], minlength=len(limit_E))
    keep_E = np.minimum(1, np.array(limit_E) / np.maximum(uses_E, 1))
    # The probability that every one of its words drops a caption.
    drop_C = np.ones(len(count_C))
    np.multiply.at(drop_C, caption_M, 1 - keep_E[word_M])
    listed = [canonical_language(code) in lists for code in source.languages]
    has_list_C = np.array(listed, bool)[source.language_C]
    without = np.flatnonzero(has_list_C & (count_C == 0))
    if rule.others == "remove":
        choice.remove_captions(without, choice.reason("none of the words"))
    surplus = has_list_C & (count_C > 0) & (rng.random(len(count_C)) < drop_C)
    choice.remove_captions(np.flatnonzero(surplus), choice.reason("words of too many captions"))


def _matches(
    source: ChosenFrom, lists: Mapping[str, WordList], processes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the words of all captions, caption after caption, and how many each has."""
    shards = range(len(source.manifest.shards))
    jobs = shard_jobs(source.folder, source.manifest, shards)
    done = map_in_processes(partial(_match_shard, lists), jobs, processes)
    words, counts = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for found, count in track(done, "shards", len(shards)):
        words.append(found)
        counts.append(count)
    return np.concatenate(words), np.concatenate(counts)


def _match_shard(lists: Mapping[str, WordList], job: Job) -> tuple[np.ndarray, np.ndarray]:
    found = list(_words_of(lists, job))
    words = np.fromiter((word for some in found for word in sorted(some)), np.int32)
    return words, np.fromiter(map(len, found), np.int32, len(found))


def _words_of(lists: Mapping[str, WordList], job: Job) -> Iterator[set[int]]:
    """For each caption; none for those of a sample that cannot be read."""
    _, folder, manifest = job
    for row, pair in read_shard(folder, manifest, with_image=False):
        if isinstance(pair, UnusableSample):
            yield from (set() for _ in row["langs"])
            continue
        for caption in pair.captions:
            words = lists.get(canonical_language(caption.lang))
            yield words.find(caption.text) if words else set()
