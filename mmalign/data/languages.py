"""Language codes (BCP-47) and how often each language is drawn."""

import re
from collections.abc import Mapping

# The shape of a tag in RFC 5646; whether the registry lists it is not our business: low-resource data
# bring codes of their own.
_TAG = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")


def is_language_code(code: str) -> bool:
    """Whether `code` has the shape of a BCP-47 tag, for example `sw`, `pt-BR`, `lgg-x-official`."""
    return _TAG.fullmatch(code) is not None


def caption_weights(counts: Mapping[str, int], temperature: float) -> dict[str, float]:
    """The weight of one caption of each language under temperature sampling.

    Language l with n captions is to be drawn with probability proportional to n^(1/T) (Devlin et al. 2019,
    multilingual BERT's S = 1/T; Arivazhagan et al. 2019, arXiv 1907.05019), so one of its captions weighs
    n^(1/T - 1). T = 1 draws captions as they come, a large T draws the languages alike.
    """
    return {lang: n ** (1 / temperature - 1) for lang, n in counts.items()}
