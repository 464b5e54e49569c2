"""The language of a text: identified with a confidence, and the script that its letters should have.

text -> py3langid, or a fastText model (GlotLID, lid.176) -> (BCP-47 code, probability)
text, code -> share of its letters in the script that CLDR gives for the language
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import regex

from mmalign.core.errors import UserError, one_line
from mmalign.core.languages import canonical_language, likely_script

DEFAULT = "py3langid"
UNDETERMINED = "und"
_LETTER = regex.compile(r"\p{L}")
# Of ISO 15924's codes those that stand for several scripts, or for a variant, of Unicode.
_SCRIPTS = {
    "Jpan": r"\p{Hani}\p{Hira}\p{Kana}",
    "Kore": r"\p{Hang}\p{Hani}",
    "Hans": r"\p{Hani}\p{Bopo}",
    "Hant": r"\p{Hani}\p{Bopo}",
}

Identify = Callable[[str], tuple[str, float]]


def identifier(name: str = DEFAULT) -> Identify:
    """Text -> (code, confidence between 0 and 1); `und` and 0 for a text without letters.

    Args:
        name: `py3langid` (140 languages; naive Bayes on byte n-grams after Lui and Baldwin 2012, langid.py),
            or the file of a fastText model, such as GlotLID's (Joulin et al. 2017, arXiv 1607.01759).

    Raises:
        UserError: the library is not installed, or there is no such model.
    """
    classify = _py3langid() if name == DEFAULT else _fasttext(name)
    return lambda text: classify(text) if _LETTER.search(text) else (UNDETERMINED, 0.0)


@lru_cache(maxsize=1)
def _py3langid() -> Identify:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError(
            "language identification needs the extra `identify`; run pip install 'mmalign[identify]'"
        ) from None
    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return lambda text: model.classify(text)


@lru_cache(maxsize=1)
def _fasttext(name: str) -> Identify:
    if not Path(name).is_file():
        raise UserError(f"{name}: no such model; name a fastText file, or `{DEFAULT}`")
    try:
        import fasttext
    except ImportError:
        raise UserError(
            f"{name}: a fastText model needs the library; run pip install fasttext-predict"
        ) from None
    try:
        model: Any = fasttext.load_model(name)
    except ValueError as error:
        raise UserError(f"{name}: not a fastText model ({one_line(error)})") from None

    def classify(text: str) -> tuple[str, float]:
        # Not by the library's own `predict`, which fails with numpy 2 in some builds. A line is one text.
        ((share, label),) = model.f.predict(text.replace("\n", " ") + "\n", 1, 0.0, "replace")
        # `__label__eng_Latn` of GlotLID, `__label__en` of lid.176
        code = canonical_language(label.removeprefix("__label__").replace("_", "-"))
        return code, min(1.0, float(share))  # rounding of float32

    return classify


def script_share(text: str, lang: str) -> float | None:
    """Share of a text's letters in the usual script of a language; None: no letters, or no known language."""
    letters = _LETTER.findall(text)
    script = likely_script(lang)
    if not letters or script is None:
        return None
    return sum(map(bool, map(_of_script(script).match, letters))) / len(letters)


@lru_cache(maxsize=256)
def _of_script(script: str) -> Any:
    try:
        return regex.compile(f"[{_SCRIPTS.get(script, chr(92) + 'p{' + script + '}')}]")
    except regex.error:  # a script that Unicode lacks
        return regex.compile("(?!)")
