"""Sentences with marked slots, as MASSIVE writes them -> words and their tags.

wake me up at [time : five am] -> wake me up at five    am
                                  O    O  O  O  B-time  I-time
"""

import re

# Languages whose words MASSIVE does not separate: its own code makes a word of each character there.
_BY_CHARACTER = ("ja", "zh")
_SLOT = re.compile(r"\[\s*([^\[\]:]+?)\s*:([^\[\]]*)\]")


def words_and_tags(marked: str, lang: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words of a sentence and one tag per word: `O`, `B-<slot>` or `I-<slot>`.

    As in the publisher's code (`create_hf_dataset.py`, `convert_to_bio`; FitzGerald et al. 2022, arXiv
    2204.08582), neighbouring words of one slot are one span, also where they were marked apart; in Japanese
    and Chinese each character is a word, but for runs without spaces that are all ASCII.

    Raises:
        ValueError: a bracket that is not part of a slot, or no word.
    """
    words: list[str] = []
    slots: list[str] = []
    # `split` returns text, slot, its words, text, slot, its words, ..., text.
    parts = ["", *_SLOT.split(marked)]
    for kind, text in enumerate(parts):
        if kind % 3 == 2:
            continue  # the name of a slot, whose words come next
        if "[" in text or "]" in text:
            raise ValueError(f"`{text.strip()}` has a bracket that marks no slot")
        slot = parts[kind - 1] if kind % 3 == 0 else ""
        for chunk in text.split():
            is_one_word = chunk.isascii() or lang.split("-")[0] not in _BY_CHARACTER
            found = [chunk] if is_one_word else list(chunk)
            words += found
            slots += [slot] * len(found)
    if not words:
        raise ValueError("has no words")
    tags = [
        f"{'I' if slot == before else 'B'}-{slot}" if slot else "O"
        for slot, before in zip(slots, ["", *slots], strict=False)
    ]
    return tuple(words), tuple(tags)
