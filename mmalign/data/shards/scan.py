"""A tar that somebody else made -> rows of an index, and a refusal of everything that is not used.

    walk -> members of one key -> image and captions checked -> row
                               -> anything else              -> refusal: key, bytes and reason

A sample is the members that stand together under one key: the path up to the first dot of the base name, as
in webdataset. It needs one image and one member with captions, `.txt` or `.json`. Other suffixes (`.cls`,
`.pkl`, `.gz`, ...) are counted and never opened.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TextIO

from mmalign.core.errors import UserError
from mmalign.core.languages import canonical_language, is_language_code
from mmalign.data.identify import DEFAULT, identifier
from mmalign.data.image_formats import READ_SUFFIXES
from mmalign.data.images import UndecodableImage, open_image, undecodable_images
from mmalign.data.names import fault_of
from mmalign.data.shards.manifest import OWN_CAPTIONS, extent_of
from mmalign.data.shards.reader import (
    MAX_IMAGE_BYTES,
    MAX_JSON_BYTES,
    MAX_TEXT_BYTES,
    UnusableSample,
    captions_in,
    parse_member,
)
from mmalign.data.shards.tar import Damage, Member, walk

MAX_REFUSALS = 100_000  # lines that name what was refused; the rest is counted
_KINDS = {**dict.fromkeys(READ_SUFFIXES, "image"), "json": "json", "txt": "txt"}
_MOST = {"image": MAX_IMAGE_BYTES, "json": MAX_JSON_BYTES, "txt": MAX_TEXT_BYTES}
_BIT = {"image": 1, "json": 2, "txt": 4}
_MAX_NAMES = 100  # suffixes, and texts in the place of a language code, that are counted by name
_COUNTED = ("languages", "respelled", "filled", "refused", "ignored")


@dataclass(frozen=True)
class Rules:
    """How captions and their languages are read; a UserError if they cannot be."""

    captions: str = (
        "txt"  # or `json:FIELD` for a field that holds a text or a list (reader.captions_in)
    )
    # Of captions that do not say it themselves: a code, `json:FIELD`, `identify`, `identify:MODEL`
    # (identify.py), or None if all say it.
    language: str | None = None
    # Where what was found is missing or no code: a code or `identify`; None: the sample is refused.
    fallback: str | None = None

    def __post_init__(self) -> None:
        if self.captions != "txt" and not _field(self.captions):
            raise UserError(f"--captions is `{self.captions}`; give `txt` or `json:FIELD`")
        if self.language is None and self.captions == "txt":
            raise UserError("--language is missing: give a code, `json:FIELD` or `identify`")
        for option, rule in (("language", self.language), ("fallback", self.fallback)):
            is_code = rule is None or is_language_code(canonical_language(rule))
            if not (is_code or _model(rule) or (option == "language" and _field(rule))):
                raise UserError(
                    f"--{option} is `{rule}`; give a code such as `sw`, `json:FIELD` or `identify`"
                )

    @property
    def fixed(self) -> str | None:
        """The code that every caption gets, None under the other rules."""
        return None if _model(self.language) or _field(self.language) else self.language

    @property
    def models(self) -> list[str]:
        """The language identifiers that the rules need."""
        return [model for rule in (self.language, self.fallback) if (model := _model(rule))]

    @classmethod
    def from_json(cls, tree: dict[str, str]) -> "Rules":
        """What `to_json` was made of."""
        named = {"captions": None, "identified": "identify"}
        language = named.get(tree["language"], tree["language"].removeprefix("fixed:"))
        return cls(tree["from"], language, tree.get("fallback"))

    def to_json(self) -> dict[str, str]:
        """For the manifest: `fixed:CODE`, `json:FIELD`, `identified`, or `captions` (they say it)."""
        named = {None: "captions", "identify": "identified"}.get(self.language, self.language)
        language = f"fixed:{self.fixed}" if self.fixed else str(named)
        fallback = {"fallback": self.fallback} if self.fallback else {}
        return {"from": self.captions, "language": language, **fallback}


def _field(rule: str | None) -> str | None:
    """FIELD of `json:FIELD`, or None."""
    kind, _, name = (rule or "").partition(":")
    return name if kind == "json" and name else None


def _model(rule: str | None) -> str | None:
    """The language identifier of `identify` or `identify:MODEL`, or None."""
    kind, _, name = (rule or "").partition(":")
    return name or DEFAULT if kind == "identify" else None


def _language_by(rule: str | None, text: str) -> str | None:
    """The language that `identify` or a code gives a text."""
    model = _model(rule)
    return identifier(model)(text)[0] if model else rule


@dataclass
class _Group:
    """Members of one key that stand together: kind -> (suffix, member)."""

    key: str
    start: int
    stop: int
    members: dict[str, tuple[str, Member]] = field(default_factory=dict)
    problem: str | None = None


@dataclass
class Scan:
    """One shard's samples: rows of those that can be used, refusals of everything else."""

    shard: str
    file: BinaryIO
    rules: Rules
    rows: TextIO
    refusals: TextIO
    expected: int | None = None  # samples that the shard had when it was made, if that is known
    spell: Callable[[str], str] = canonical_language
    respelled: Counter[str] = field(
        default_factory=Counter
    )  # captions of each code that it changed
    # Captions whose language is that of the fallback, by what stood in its place.
    filled: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    _group: _Group | None = None
    # Hash of each key -> kinds of members that it had, as bits: a shard may have a million keys.
    _seen: dict[int, int] = field(default_factory=dict)

    def run(self) -> None:
        for found in walk(self.file):
            if isinstance(found, Damage):
                self._take_damage(found)
            else:
                self._take(found)
        self._close()
        if self.expected is not None and len(self._seen) < self.expected:
            detail = f"{len(self._seen)}, not {self.expected}"
            self._refuse("fewer samples", "", 0, self.file.seek(0, os.SEEK_END), detail)

    def counts(self) -> dict[str, Any]:
        counters = {name: getattr(self, name) for name in _COUNTED}
        ordered = {name: dict(sorted(counter.items())) for name, counter in counters.items()}
        return {"samples": self.samples, **ordered}

    def _take(self, member: Member) -> None:
        key, suffix = split_name(member.name)
        if not key:  # `.DS_Store`, `._0001.jpg`, a file without a suffix
            if member.problem is None:
                self._ignore("no key")
            else:
                self._refuse(member.problem, member.name, member.start, member.stop)
            return
        if self._group is None or self._group.key != key:
            self._close()
            self._group = _Group(key, member.start, member.stop)
        group = self._group
        group.stop = member.stop
        kind = _KINDS.get(suffix)
        if member.problem is not None:
            group.problem = group.problem or member.problem
        elif kind is None:
            self._ignore(suffix)
        elif kind in group.members:
            group.problem = group.problem or "duplicate suffix"
        else:
            group.members[kind] = suffix, member

    def _take_damage(self, damage: Damage) -> None:
        key = split_name(damage.name)[0] if damage.name else ""
        # The last member of a sample next to damaged bytes may belong to another sample.
        if self._group is not None and damage.reason != "no end mark":
            self._group.problem = self._group.problem or "beside damage"
        self._close()
        self._refuse(damage.reason, key, damage.start, damage.stop)
        if key:
            self._seen.setdefault(hash(key), 0)

    def _close(self) -> None:
        """The members collected so far are a complete sample, or are refused."""
        group, self._group = self._group, None
        if group is None:
            return
        kinds = sum(_BIT[kind] for kind in group.members)
        before = self._seen.get(hash(group.key))
        self._seen[hash(group.key)] = kinds | (before or 0)
        try:
            if group.problem is not None:
                raise UnusableSample(group.problem)
            if before is not None:
                raise UnusableSample("duplicate key" if before & kinds else "not adjacent")
            row = self._row(group)
        except UnusableSample as error:
            self._refuse(error.reason, group.key, group.start, group.stop, error.detail)
            return
        written, row["langs"] = row["langs"], [self.spell(code) for code in row["langs"]]
        self.respelled.update(a for a, b in zip(written, row["langs"], strict=True) if a != b)
        self.rows.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.samples += 1
        self.languages.update(row["langs"])

    def _row(self, group: _Group) -> dict[str, Any]:
        origin = self.rules.captions.partition(":")[0]
        if "image" not in group.members:
            raise UnusableSample("no image")
        if origin not in group.members:
            raise UnusableSample("no caption", f"no .{origin} member")
        data = self._read(group, origin)
        content = parse_member(origin, data)
        captions = captions_in(content, self.rules.captions)
        if not all(text.strip() for text, _ in captions) or not captions:
            raise UnusableSample("no caption")
        language = self._language_field(group, content)
        langs: list[str] = []
        filled: list[str] = []
        for text, lang in captions:
            code = lang or language
            if code is None and not _field(self.rules.language):
                code = _language_by(self.rules.language, text)
            if code is None or not is_language_code(canonical_language(code)):
                found, code = code, _language_by(self.rules.fallback, text)
                if code is None:
                    raise UnusableSample("language", found or "none")
                filled.append(found or "none")
            langs.append(code)
        image = self._read(group, "image")
        check_picture(image)
        # In others' JSON, a field of this name may mean anything.
        picture = content.get("picture") if isinstance(content, dict) else None
        if not isinstance(picture, str) or self.rules.captions != OWN_CAPTIONS:
            picture = hashlib.sha256(image).hexdigest()
        if fault := fault_of(picture):
            raise UnusableSample(fault[0], f"its `picture` is {picture!a}")
        for code in filled:
            known = code in self.filled or len(self.filled) < _MAX_NAMES
            self.filled[code[:40] if known else "others"] += 1
        extents = {}
        for kind, bytes_of in (("image", image), (origin, data)):
            suffix, member = group.members[kind]
            extents[kind] = extent_of(suffix, member.offset, bytes_of)
        return {"key": group.key, **extents, "picture": picture, "langs": langs}

    def _language_field(self, group: _Group, content: str | dict[str, Any]) -> str | None:
        name = _field(self.rules.language)
        if name is None:
            return None
        if isinstance(content, str):
            if "json" not in group.members:
                raise UnusableSample("language", "no .json member")
            content = parse_member("json", self._read(group, "json"))
        value = content.get(name) if isinstance(content, dict) else None
        return value if isinstance(value, str) else None

    def _read(self, group: _Group, kind: str) -> bytes:
        suffix, member = group.members[kind]
        if member.size > _MOST[kind]:
            raise UnusableSample("too large", f".{suffix}: {member.size} bytes, over {_MOST[kind]}")
        self.file.seek(member.offset)
        return self.file.read(member.size)

    def _ignore(self, suffix: str) -> None:
        known = suffix in self.ignored or len(self.ignored) < _MAX_NAMES
        self.ignored[suffix[:40] if known else "others"] += 1

    def _refuse(self, reason: str, key: str, start: int, stop: int, detail: str = "") -> None:
        if self.refused.total() < MAX_REFUSALS:
            line = {"shard": self.shard, "key": key[:1000], "reason": reason, "detail": detail}
            kept = {name: value for name, value in line.items() if value}
            extent = {"start": start, "stop": stop}
            self.refusals.write(json.dumps(kept | extent, ensure_ascii=False) + "\n")
        self.refused[reason] += 1


def split_name(name: str) -> tuple[str, str]:
    """(key, suffix) of a member: the base name is cut at its first dot; the key is "" if there is none."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (folder + slash + stem if stem and suffix else ""), suffix.lower()


def check_picture(data: bytes) -> None:
    """Look at an image's header; an UnusableSample if it is invalid or has too many pixels."""
    try:
        with undecodable_images():
            open_image(data)
    except UndecodableImage as error:
        if error.reason == "too many pixels":
            raise UnusableSample(error.reason, error.detail) from None
        raise UnusableSample("not an image") from None
