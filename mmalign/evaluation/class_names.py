"""What classes are called in each language, and the sentences that the names are put into.

    open_clip's names, Babel-ImageNet's file, a folder of <lang>.json -> read_names -> {lang: {class: name}}
    `label`, `openai`, a folder of <lang>.json                    -> read_templates -> {lang: templates}

A class is identified by the name of its folder. In ImageNet that is a WordNet id (`n01440764`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.core.languages import canonical_language
from mmalign.core.resources import find_folder

LABEL = "label"  # the names alone, without a sentence
OPENAI = "openai"  # the names and templates of CLIP's authors, English
SLOT = "{}"
_CLASSES = 1000  # of ImageNet-1k

Names = dict[str, dict[str, str]]  # language -> class -> its name

_Index = Annotated[int, pydantic.Field(ge=0, lt=_CLASSES)]
_Name = Annotated[str, pydantic.StringConstraints(strip_whitespace=True, min_length=1)]
_BABEL = pydantic.TypeAdapter(dict[str, tuple[list[_Index], list[_Name]]])
_NAMES = pydantic.TypeAdapter(dict[str, _Name])


class Prompts(Section):
    """A file `<lang>.json` of templates."""

    lang: str
    templates: tuple[str, ...] = pydantic.Field(min_length=1)
    """Sentences with `{}` in place of the name of the class."""
    source: str
    """Who wrote them."""

    @pydantic.field_validator("templates")
    @classmethod
    def _hold_one_slot(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if any(template.count(SLOT) != 1 for template in templates):
            raise ValueError("each template must hold `{}` once")
        if len(set(templates)) < len(templates):
            raise ValueError("a template is there twice")
        return templates


def read_names(source: str, classes: Sequence[str]) -> Names:
    """Names of classes, in every language that has some.

    Args:
        source: one of

            - `openai`: English names of ImageNet-1k, as open_clip holds them.
            - a file in Babel-ImageNet's layout, {language: [[class numbers], [names]]}
              (gregor-ge/Babel-ImageNet@317c498, `data/babel_imagenet-298.json`). English comes from
              open_clip, as in its own evaluation.
            - a folder of `<lang>.json`, {class: name}: all its classes.

        classes: which of ImageNet-1k, by their WordNet ids.

    Raises:
        UserError: no such file, or another layout.
    """
    names: Names = {}
    if Path(source).is_dir():
        for file in sorted(Path(source).glob("*.json")):
            _join(names, file.stem, _read(file, _NAMES, "{class: name}"))
        return names
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    # In alphabetical order; torchvision, open_clip's names and Babel-ImageNet number classes so.
    ids = ImageNetInfo("imagenet-1k").label_names()
    if source != OPENAI:
        layout = "{language: [[class numbers below 1000], [names]]}"
        for code, (numbers, words) in _read(Path(source), _BABEL, layout).items():
            if len(numbers) != len(words) or len(set(numbers)) < len(numbers):
                raise UserError(f"{source}: `{code}` must have one name for each class number")
            of_lang = {ids[number]: word for number, word in zip(numbers, words, strict=True)}
            # Babel-ImageNet writes codes as `ZH_YUE`.
            _join(names, code.lower().replace("_", "-"), of_lang)
    names["en"] = dict(zip(ids, IMAGENET_CLASSNAMES, strict=True))
    wanted = set(classes)
    return {
        lang: {one: name for one, name in of_lang.items() if one in wanted}
        for lang, of_lang in names.items()
    }


def _join(names: Names, code: str, of_lang: dict[str, str]) -> None:
    # One language may have several spellings; of two names of a class the first stays.
    lang = canonical_language(code)
    names[lang] = of_lang | names.get(lang, {})


def read_templates(prompts: str, languages: Sequence[str]) -> dict[str, Prompts]:
    """The templates of each language; one without a file in a folder of prompts has its names alone.

    Raises:
        UserError: no such folder, a broken file, or `openai` for another language than English.
    """
    alone = {lang: Prompts(lang=lang, templates=(SLOT,), source=LABEL) for lang in languages}
    if prompts == LABEL:
        return alone
    if prompts == OPENAI:
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        if others := [lang for lang in languages if lang != "en"]:
            raise UserError(
                f"`prompts: {OPENAI}` are English, but `{others[0]}` is measured too; set "
                "`languages: [en]`, or name a folder of prompts"
            )
        templates = tuple(template(SLOT) for template in OPENAI_IMAGENET_TEMPLATES)
        return {"en": Prompts(lang="en", templates=templates, source=OPENAI)}
    folder = find_folder(prompts)
    if folder is None:
        raise UserError(f"`prompts: {prompts}`: no such folder; name one, or `{LABEL}`")
    files = {canonical_language(file.stem): file for file in sorted(folder.glob("*.json"))}
    if not files.keys() & set(languages):
        raise UserError(
            f"`prompts: {prompts}`: no file <lang>.json there for any of {', '.join(languages)}; add "
            f"one, name another folder, or `{LABEL}`"
        )
    return alone | {lang: read_prompts(files[lang]) for lang in languages if lang in files}


def read_prompts(path: Path) -> Prompts:
    prompts = _read(path, pydantic.TypeAdapter(Prompts), "`lang`, `templates` and `source`")
    if canonical_language(prompts.lang) != canonical_language(path.stem):
        raise UserError(f"{path}: `lang` is `{prompts.lang}`; name the file {prompts.lang}.json")
    return prompts


def _read(path: Path, shape: pydantic.TypeAdapter[Any], layout: str) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return shape.validate_json(path.read_bytes(), strict=True)
    except pydantic.ValidationError as failure:
        error = failure.errors()[0]
        place = ".".join(map(str, error["loc"])) or "the file"
        reason = error["msg"].removeprefix("Value error, ")  # pydantic puts it before our words
        raise UserError(f"{path}: `{place}`: {reason}; it must hold {layout}") from None
