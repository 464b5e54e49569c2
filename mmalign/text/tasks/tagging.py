"""Published sets that tag words: parts of speech and named entities.

    CoNLL-U of Universal Dependencies -> words and UPOS tags  -+
    WikiANN, XTREME's two columns     -> words and their tags -+-> Splits

A sentence is a block of lines; an empty line ends it.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mmalign.core.errors import UserError
from mmalign.text.tasks.codes import bcp47
from mmalign.text.tasks.example import Example
from mmalign.text.tasks.layout import add, matching, read_files
from mmalign.text.tasks.tables import lines
from mmalign.text.tasks.task import Splits

Word = tuple[str, str]
"""A word and its tag."""

_CONLLU_COLUMNS = 10  # https://universaldependencies.org/format.html
_NOT_A_WORD = re.compile(r"\d+[-.]\d+")  # ranges 1-2 (multiword tokens) and empty nodes 1.1


def read_conllu(folder: Path) -> Splits:
    """Universal Dependencies: universal part-of-speech tags (UPOS) of the syntactic words.

    Treebanks of one language are put together, as XTREME does. XTREME tags the fused form of a
    multiword token (French `du`); here its words are tagged (`de` and `le`), as the treebanks are.
    """
    pattern = (
        r"(.+/)?(?P<lang>[a-z]{2,3})_(?P<treebank>[a-z0-9]+)-ud-(?P<split>train|dev|test)\.conllu"
    )
    wanted = "<language>_<treebank>-ud-{train,dev,test}.conllu"
    splits: Splits = {}
    for path, match in matching(folder, pattern, wanted):
        split, lang = match["split"], bcp47(match["lang"])
        part: Splits = {}
        add(part, split, lang, _read(path, match["treebank"], split, lang, _conllu_word), path)
        splits.setdefault((split, lang), []).extend(part[split, lang])
    return splits


def read_wikiann(folder: Path) -> Splits:
    """WikiANN (Pan et al., ACL 2017; splits of Rahimi et al., ACL 2019): lines `lang:word<tab>tag`."""

    def read(path: Path, split: str, lang: str) -> Iterator[Example]:
        return _read(path, lang, split, lang, _wikiann_word)

    pattern = r"(?P<lang>[a-z-]{2,})[/-](?P<split>train|dev|test)"
    return read_files(folder, pattern, "<language>/{train,dev,test}", read)


def read_xtreme_tags(folder: Path) -> Splits:
    """UD or WikiANN as XTREME prepares them: lines `word<tab>tag`.

    XTREME takes the tags out of its test files; such a file is left out.
    """
    pattern = r"(?P<split>train|dev|test)-(?P<lang>[a-z]{2,3})\.tsv"
    splits: Splits = {}
    for path, match in matching(folder, pattern, "{train,dev,test}-<language>.tsv"):
        split, lang = match["split"], bcp47(match["lang"])
        if split != "test" or any("\t" in line for line in lines(path)):
            add(splits, split, lang, _read(path, lang, split, lang, _two_columns), path)
    return splits


def _read(
    path: Path, prefix: str, split: str, lang: str, word: Callable[[str], Word | None]
) -> Iterator[Example]:
    """One example a sentence of `path`; its id is the prefix, the split and its number."""
    for number, block in enumerate(_sentences(path, word), start=1):
        words, tags = zip(*block, strict=True)
        yield Example(f"{prefix}-{split}-{number}", lang, words, tags)


def _sentences(path: Path, word: Callable[[str], Word | None]) -> Iterator[list[Word]]:
    """The tagged words of each sentence; `word` reads a line, or None where it holds no word."""
    block: list[Word] = []
    for number, line in enumerate(lines(path), start=1):
        if not line.strip():
            if block:
                yield block
            block = []
            continue
        try:
            read = word(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        if read is not None:
            block.append(read)
    if block:
        yield block


def _conllu_word(line: str) -> Word | None:
    if line.startswith("#"):
        return None
    cells = line.split("\t")
    if len(cells) != _CONLLU_COLUMNS:
        raise ValueError(f"{len(cells)} columns; CoNLL-U has {_CONLLU_COLUMNS}")
    return None if _NOT_A_WORD.fullmatch(cells[0]) else (cells[1], cells[3])


def _wikiann_word(line: str) -> Word:
    word, tag = _two_columns(line)
    language, colon, rest = word.partition(":")
    if not colon:
        raise ValueError(f"`{language}` has no language before it; write `lang:word`")
    return rest, tag


def _two_columns(line: str) -> Word:
    cells = line.split("\t")
    if len(cells) != 2:
        raise ValueError(f"{len(cells)} columns; write a word and its tag with a tab between")
    return cells[0], cells[1].strip()
