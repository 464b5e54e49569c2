"""Published sets that classify one text: topics, sentiment, acceptability.

    files of SIB-200, MasakhaNEWS, SST-2, IMDB, Yelp, Amazon, Flipkart, XLM-T, CoLA -> Splits

Labels are the publisher's, but sentiment is `negative`, `neutral` or `positive` in every set, so
that a model trained on one can be tested on another, as GLUE-X does (arXiv 2211.08073).
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mmalign.core.errors import UserError
from mmalign.text.tasks.codes import NAMES
from mmalign.text.tasks.example import Example
from mmalign.text.tasks.layout import add, matching, read_files, read_rows, row_id
from mmalign.text.tasks.tables import Row, lines, quoted, read_text, tsv
from mmalign.text.tasks.task import Splits

_SENTIMENT_01 = {"0": "negative", "1": "positive"}
_SENTIMENT_012 = {"0": "negative", "1": "neutral", "2": "positive"}
_STARS = {"1": "negative", "2": "positive"}
_YES_NO = {"0": "0", "1": "1"}


def read_sib200(folder: Path) -> Splits:
    """SIB-200 (Adelani et al., EACL 2024): topics of FLORES-200 sentences, in 205 languages."""

    def make(row: Row, split: str, lang: str) -> Example:
        return Example(row.name("index_id"), lang, (row.text("text"),), row.text("category"))

    pattern = r"(data/annotated/)?(?P<lang>[a-z]{3}_[A-Z][a-z]{3})/(?P<split>train|dev|test)\.tsv"
    wanted = "data/annotated/<FLORES-200 code>/{train,dev,test}.tsv"
    return read_rows(folder, pattern, wanted, quoted, make)


def read_masakhanews(folder: Path) -> Splits:
    """MasakhaNEWS (Adelani et al., 2023): news topics in 16 African languages.

    The text is the headline and the article, as in the authors' own code.
    """

    def make(row: Row, split: str, lang: str) -> Example:
        text = f"{row.cell('headline')} {row.cell('text')}"
        return Example(row_id(row, f"{lang}-{split}"), lang, (text,), row.text("category"))

    pattern = r"(data/)?(?P<lang>[a-z]{3})/(?P<split>train|dev|test)\.tsv"
    return read_rows(folder, pattern, "data/<ISO 639-3>/{train,dev,test}.tsv", quoted, make)


def read_sst2(folder: Path) -> Splits:
    """SST-2 as GLUE ships it; the test file of GLUE has no labels and is not read."""

    def make(row: Row, split: str, lang: str) -> Example:
        label = row.renamed("label", _SENTIMENT_01)
        return Example(row_id(row, split), lang, (row.text("sentence").strip(),), label)

    pattern = r"(SST-2/)?(?P<split>train|dev)\.tsv"
    return read_rows(folder, pattern, "SST-2/{train,dev}.tsv", tsv, make)


def read_cola(folder: Path) -> Splits:
    """CoLA (Warstadt et al., 2019), as GLUE or as its authors ship it; 1 is acceptable.

    The authors' out-of-domain development set is the test.
    """

    def make(row: Row, split: str, lang: str) -> Example:
        label = row.renamed("label", _YES_NO)
        return Example(row_id(row, split), lang, (row.text("sentence"),), label)

    pattern = (
        r"(CoLA/|cola_public/raw/|raw/)?"
        r"(?P<split>train|dev|in_domain_train|in_domain_dev|out_of_domain_dev)\.tsv"
    )
    wanted = "CoLA/{train,dev}.tsv or cola_public/raw/{in_domain_train,...,out_of_domain_dev}.tsv"
    rows = partial(tsv, columns=("source", "label", "star", "sentence"))
    return read_rows(folder, pattern, wanted, rows, make)


def read_imdb(folder: Path) -> Splits:
    """IMDB reviews (Maas et al., ACL 2011): one file a review, its label in the folder's name."""
    pattern = r"(aclImdb/)?(?P<split>train|test)/(?P<label>neg|pos)/(?P<name>\d+_\d+)\.txt"
    splits: Splits = {}
    for path, match in matching(folder, pattern, "aclImdb/{train,test}/{neg,pos}/*.txt"):
        label = "negative" if match["label"] == "neg" else "positive"
        name = f"{match['split']}-{match['label']}-{match['name']}"
        example = Example(name, "en", (read_text(path).replace("<br />", "\n"),), label)
        splits.setdefault((match["split"], "en"), []).append(example)
    return splits


def read_yelp_polarity(folder: Path) -> Splits:
    """Yelp reviews (Zhang et al., NeurIPS 2015): class (1 negative, 2 positive) and text."""
    return _read_polarity(folder, "yelp_review_polarity_csv", ("label", "text"))


def read_amazon_polarity(folder: Path) -> Splits:
    """Amazon reviews (Zhang et al., NeurIPS 2015); as in GLUE-X the title is not read."""
    return _read_polarity(folder, "amazon_review_polarity_csv", ("label", "title", "text"))


def read_flipkart(folder: Path) -> Splits:
    """Flipkart reviews: columns Summary and Sentiment of the file on Kaggle or of GLUE-X.

    GLUE-X tests on all of it with neutral counted as negative. Rows without a summary are left out.
    """
    names = {"positive": "positive", "negative": "negative", "neutral": "negative"}

    def read(path: Path) -> Iterator[Example]:
        for row in quoted(path, delimiter="," if path.suffix == ".csv" else "\t"):
            if row.cell("Summary").strip():
                label = row.renamed("Sentiment", names)
                yield Example(row_id(row, "test"), "en", (row.text("Summary"),), label)

    wanted = "Dataset-SA.csv or flipkart_updated.tsv"
    splits: Splits = {}
    for path, _ in matching(folder, r"Dataset-SA\.csv|flipkart_updated\.tsv", wanted):
        add(splits, "test", "en", read(path), path)
    return splits


def read_xlmt(folder: Path) -> Splits:
    """XLM-T (Barbieri et al., LREC 2022): sentiment of tweets in 8 languages.

    The folder `all`, which repeats the others, is not read.
    """

    def read(path: Path, split: str, lang: str) -> Iterator[Example]:
        texts, labels = lines(path), lines(path.with_name(path.name.replace("_text", "_labels")))
        if len(texts) != len(labels):
            raise UserError(
                f"{path}: {len(texts)} lines, but {len(labels)} in the file of labels beside it; "
                "get both again"
            )
        for number, (text, label) in enumerate(zip(texts, labels, strict=True), start=1):
            row = Row(path, number, number, {"text": text, "label": label.strip()})
            target = row.renamed("label", _SENTIMENT_012)
            yield Example(row_id(row, f"{lang}-{split}"), lang, (text,), target)

    pattern = rf"(data/sentiment/)?(?P<lang>{'|'.join(NAMES)})/(?P<split>train|val|test)_text\.txt"
    wanted = "data/sentiment/<language>/{train,val,test}_{text,labels}.txt"
    return read_files(folder, pattern, wanted, read)


def _read_polarity(folder: Path, name: str, columns: tuple[str, ...]) -> Splits:
    def make(row: Row, split: str, lang: str) -> Example:
        # A line break in a review is written as a backslash and an n.
        text = row.cell("text").replace("\\n", "\n")
        return Example(row_id(row, split), lang, (text,), row.renamed("label", _STARS))

    rows = partial(quoted, columns=columns, delimiter=",")
    pattern = rf"({name}/)?(?P<split>train|test)\.csv"
    return read_rows(folder, pattern, f"{name}/{{train,test}}.csv", rows, make)
