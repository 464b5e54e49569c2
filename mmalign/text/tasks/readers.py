"""Which layouts can be read: the name of a format -> its kind of task and its reader.

(format, folder) -> READERS -> (kind, Splits)
"""

from functools import partial
from pathlib import Path
from typing import Literal

from mmalign.text.tasks import (
    multiple_choice,
    pairs,
    question_answering,
    retrieval,
    similarity,
    single_text,
    tagging,
)
from mmalign.text.tasks.adv_glue import read_adv_glue
from mmalign.text.tasks.meci import read_meci
from mmalign.text.tasks.plain import kind_of, read_plain
from mmalign.text.tasks.task import Kind, Reader, Splits

Format = Literal[
    "tsv",
    "sib200", "masakhanews", "sst2", "cola", "imdb", "yelp_polarity", "amazon_polarity", "flipkart", "xlmt",
    "xnli", "xtreme_pairs", "pawsx", "mnli", "snli", "sick", "rte", "qnli", "hans", "scitail",
    "mrpc", "qqp", "pit2015",
    "adv_sst2", "adv_mnli", "adv_mnli_mm", "adv_qnli", "adv_qqp", "adv_rte",
    "stsb", "stsb_multi_mt", "sick_relatedness",
    "xcopa", "copa", "social_iqa",
    "conllu", "wikiann", "xtreme_tags",
    "squad", "xquad", "mlqa", "tydiqa",
    "tatoeba", "lareqa", "mewslix",
    "meci",
]  # fmt: skip

READERS: dict[Format, tuple[Kind, Reader]] = {
    "tsv": ("classification", read_plain),
    "sib200": ("classification", single_text.read_sib200),
    "masakhanews": ("classification", single_text.read_masakhanews),
    "sst2": ("classification", single_text.read_sst2),
    "cola": ("classification", single_text.read_cola),
    "imdb": ("classification", single_text.read_imdb),
    "yelp_polarity": ("classification", single_text.read_yelp_polarity),
    "amazon_polarity": ("classification", single_text.read_amazon_polarity),
    "flipkart": ("classification", single_text.read_flipkart),
    "xlmt": ("classification", single_text.read_xlmt),
    "xnli": ("classification", pairs.read_xnli),
    "xtreme_pairs": ("classification", pairs.read_xtreme_pairs),
    "pawsx": ("classification", pairs.read_pawsx),
    "mnli": ("classification", pairs.read_mnli),
    "snli": ("classification", pairs.read_snli),
    "sick": ("classification", pairs.read_sick),
    "rte": ("classification", pairs.read_rte),
    "qnli": ("classification", pairs.read_qnli),
    "hans": ("classification", pairs.read_hans),
    "scitail": ("classification", pairs.read_scitail),
    "mrpc": ("classification", pairs.read_mrpc),
    "qqp": ("classification", pairs.read_qqp),
    "pit2015": ("classification", pairs.read_pit2015),
    "adv_sst2": ("classification", partial(read_adv_glue, task="sst2")),
    "adv_mnli": ("classification", partial(read_adv_glue, task="mnli")),
    "adv_mnli_mm": ("classification", partial(read_adv_glue, task="mnli-mm")),
    "adv_qnli": ("classification", partial(read_adv_glue, task="qnli")),
    "adv_qqp": ("classification", partial(read_adv_glue, task="qqp")),
    "adv_rte": ("classification", partial(read_adv_glue, task="rte")),
    "stsb": ("similarity", similarity.read_stsb),
    "stsb_multi_mt": ("similarity", similarity.read_stsb_multi_mt),
    "sick_relatedness": ("similarity", similarity.read_sick_relatedness),
    "xcopa": ("multiple_choice", multiple_choice.read_xcopa),
    "copa": ("multiple_choice", multiple_choice.read_copa),
    "social_iqa": ("multiple_choice", multiple_choice.read_social_iqa),
    "conllu": ("tagging", tagging.read_conllu),
    "wikiann": ("tagging", tagging.read_wikiann),
    "xtreme_tags": ("tagging", tagging.read_xtreme_tags),
    "squad": ("span_qa", question_answering.read_squad),
    "xquad": ("span_qa", question_answering.read_xquad),
    "mlqa": ("span_qa", question_answering.read_mlqa),
    "tydiqa": ("span_qa", question_answering.read_tydiqa),
    "tatoeba": ("retrieval", retrieval.read_tatoeba),
    "lareqa": ("retrieval", retrieval.read_lareqa),
    "mewslix": ("retrieval", retrieval.read_mewslix),
    "meci": ("event_causality", read_meci),
}
"""Every format of `Format`; our own holds two kinds, told by its columns."""


def read(format: Format, folder: Path) -> tuple[Kind, Splits]:
    """The kind of task and the examples that a folder in this layout holds.

    Raises:
        UserError: nothing of the layout is there, or a file of it is broken (file, line, what is wrong).
    """
    kind, reader = READERS[format]
    splits = reader(folder)
    return (kind_of(splits) if format == "tsv" else kind), splits
