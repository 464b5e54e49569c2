"""One tar that somebody else made -> rows of an index, and a refusal of everything that is not used.

    walk -> members of one key -> picture and captions checked -> row
                               -> anything else                -> refusal: key, bytes and reason

A sample is the members that stand together under one key: the path up to the first dot of the base name, as
webdataset has it. It needs one picture and one member with captions, `.txt` or `.json`. Other suffixes
(`.cls`, `.pkl`, `.gz`, ...) are counted and never opened. A sample next to damaged bytes is refused: its
last member may have come from elsewhere. What carries no checksum cannot be checked: an index vouches for the
bytes that it saw, from then on.
"""

import hashlib
import io
import json
import os
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TextIO

from PIL import Image

from mmalign.core.errors import UserError
from mmalign.core.languages import is_language_code
from mmalign.data.image_formats import PILLOW_NAMES, READ_SUFFIXES
from mmalign.data.preprocess import MAX_PIXELS
from mmalign.data.shards.manifest import OWN_CAPTIONS, place_of
from mmalign.data.shards.reader import (
    MAX_IMAGE_BYTES,
    MAX_JSON_BYTES,
    MAX_TEXT_BYTES,
    UnusableSample,
    captions_in,
    decode_text,
    parse_json,
)
from mmalign.data.shards.tar import Damage, Member, walk

MAX_REFUSALS = 100_000  # lines that name what was refused; the rest is counted
_KINDS = {**dict.fromkeys(READ_SUFFIXES, "image"), "json": "json", "txt": "txt"}
_MOST = {"image": MAX_IMAGE_BYTES, "json": MAX_JSON_BYTES, "txt": MAX_TEXT_BYTES}
_BIT = {"image": 1, "json": 2, "txt": 4}
_MAX_SUFFIXES = 100  # that are counted by name


@dataclass(frozen=True)
class Rules:
    """How captions and their languages are read.

    Attributes:
        captions: `txt`, or `json:FIELD` for a field that holds a text or a list (reader.captions_in).
        language: of captions that do not tell it themselves: a code, `json:FIELD`, `identify`, or None where
            all tell it.

    Raises:
        UserError: neither of these.
    """

    captions: str = "txt"
    language: str | None = None

    def __post_init__(self) -> None:
        if self.captions != "txt" and not _field(self.captions):
            raise UserError(f"--captions is `{self.captions}`; give `txt` or `json:FIELD`")
        if self.language is None:
            if self.captions == "txt":
                raise UserError("--language is missing: give a code, `json:FIELD` or `identify`")
        elif self.fixed is not None and not is_language_code(self.fixed):
            raise UserError(
                f"--language is `{self.language}`; give a code such as `sw`, `json:FIELD` or `identify`"
            )

    @property
    def fixed(self) -> str | None:
        """The code that every caption gets, None under the other rules."""
        return None if self.language == "identify" or _field(self.language) else self.language

    def to_json(self) -> dict[str, str]:
        """As the manifest says it: `fixed:CODE`, `json:FIELD`, `identified`, or `captions` (they tell it)."""
        named = {None: "captions", "identify": "identified"}.get(self.language, self.language)
        return {
            "from": self.captions,
            "language": f"fixed:{self.fixed}" if self.fixed else str(named),
        }


def _field(rule: str | None) -> str | None:
    """FIELD of `json:FIELD`, None where the rule is another."""
    kind, _, name = (rule or "").partition(":")
    return name if kind == "json" and name else None


@dataclass
class _Run:
    """Members of one key that stand together."""

    key: str
    start: int
    stop: int
    members: dict[str, tuple[str, Member]] = field(default_factory=dict)
    problem: str | None = None


class Scan:
    """One shard's samples: rows of those that can be used, refusals of everything else.

    Args:
        expected: samples that the shard had when it was made, where that is known.
    """

    def __init__(
        self,
        shard: str,
        file: BinaryIO,
        rules: Rules,
        rows: TextIO,
        refusals: TextIO,
        expected: int | None = None,
    ) -> None:
        self.shard, self.file, self.rules = shard, file, rules
        self.rows, self.refusals = rows, refusals
        self.expected = expected
        self.samples = 0
        self.languages: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self._run: _Run | None = None
        self._seen: dict[int, int] = {}  # hash of a key -> kinds of members that it had

    def run(self) -> None:
        """Walk the whole file."""
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
        return {
            "samples": self.samples,
            "languages": dict(sorted(self.languages.items())),
            "refused": dict(sorted(self.refused.items())),
            "ignored": dict(sorted(self.ignored.items())),
        }

    def _take(self, member: Member) -> None:
        key, suffix = split_name(member.name)
        if not key and member.problem is not None:
            self._refuse(member.problem, member.name, member.start, member.stop)
            return
        if not key:  # `.DS_Store`, `._0001.jpg`, a file without a suffix
            self._ignore("no key")
            return
        if self._run is None or self._run.key != key:
            self._close()
            self._run = _Run(key, member.start, member.stop)
        run = self._run
        run.stop = member.stop
        kind = _KINDS.get(suffix)
        if member.problem is not None:
            run.problem = run.problem or member.problem
        elif kind is None:
            self._ignore(suffix)
        elif kind in run.members:
            run.problem = run.problem or "duplicate suffix"
        else:
            run.members[kind] = suffix, member

    def _take_damage(self, damage: Damage) -> None:
        key = split_name(damage.name)[0] if damage.name else ""
        if self._run is not None and damage.reason != "no end mark":
            self._run.problem = self._run.problem or "beside damage"
        self._close()
        self._refuse(damage.reason, key, damage.start, damage.stop)
        if key:
            self._seen.setdefault(hash(key), 0)

    def _close(self) -> None:
        """The members at hand are a whole sample, or nothing that can be used."""
        run, self._run = self._run, None
        if run is None:
            return
        kinds = sum(_BIT[kind] for kind in run.members)
        before = self._seen.get(hash(run.key))
        self._seen[hash(run.key)] = kinds | (before or 0)
        try:
            if run.problem is not None:
                raise UnusableSample(run.problem)
            if before is not None:
                raise UnusableSample("duplicate key" if before & kinds else "not adjacent")
            row = self._row(run)
        except UnusableSample as error:
            self._refuse(error.reason, run.key, run.start, run.stop, error.detail)
            return
        self.rows.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.samples += 1
        self.languages.update(row["langs"])

    def _row(self, run: _Run) -> dict[str, Any]:
        """The index row of a sample.

        Raises:
            UnusableSample: something is missing or not of the format.
        """
        origin = self.rules.captions.partition(":")[0]
        if "image" not in run.members:
            raise UnusableSample("no image")
        if origin not in run.members:
            raise UnusableSample("no caption", f"no .{origin} member")
        data = self._read(run, origin)
        content = decode_text(data) if origin == "txt" else parse_json(data)
        captions = captions_in(content, self.rules.captions)
        if not all(text.strip() for text, _ in captions) or not captions:
            raise UnusableSample("no caption")
        told = self._language_field(run, content)
        langs = [_language(text, lang or told, self.rules) for text, lang in captions]
        image = self._read(run, "image")
        check_picture(image)
        picture = content.get("picture") if isinstance(content, dict) else None
        if not isinstance(picture, str) or self.rules.captions != OWN_CAPTIONS:
            picture = hashlib.sha256(image).hexdigest()
        return {
            "key": run.key,
            "image": self._place(run, "image", image),
            origin: self._place(run, origin, data),
            "picture": picture,
            "langs": langs,
        }

    def _language_field(self, run: _Run, content: str | dict[str, Any]) -> str | None:
        """What the JSON field of `--language json:FIELD` says."""
        name = _field(self.rules.language)
        if name is None:
            return None
        if isinstance(content, str):
            if "json" not in run.members:
                raise UnusableSample("language", "no .json member")
            content = parse_json(self._read(run, "json"))
        value = content.get(name)
        return value if isinstance(value, str) else None

    def _read(self, run: _Run, kind: str) -> bytes:
        suffix, member = run.members[kind]
        if member.size > _MOST[kind]:
            raise UnusableSample("too large", f".{suffix}: {member.size} bytes, over {_MOST[kind]}")
        self.file.seek(member.offset)
        return self.file.read(member.size)

    def _place(self, run: _Run, kind: str, data: bytes) -> list[Any]:
        suffix, member = run.members[kind]
        return place_of(suffix, member.offset, data)

    def _ignore(self, suffix: str) -> None:
        known = suffix in self.ignored or len(self.ignored) < _MAX_SUFFIXES
        self.ignored[suffix[:40] if known else "others"] += 1

    def _refuse(self, reason: str, key: str, start: int, stop: int, detail: str = "") -> None:
        if self.refused.total() < MAX_REFUSALS:
            line = {"shard": self.shard, "key": key[:1000], "reason": reason, "detail": detail}
            place = {"start": start, "stop": stop}
            kept = {name: value for name, value in line.items() if value}
            self.refusals.write(json.dumps(kept | place, ensure_ascii=False) + "\n")
        self.refused[reason] += 1


def split_name(name: str) -> tuple[str, str]:
    """(key, suffix) of a member: the base name is cut at its first dot; the key is "" where there is none."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (folder + slash + stem if stem and suffix else ""), suffix.lower()


def check_picture(data: bytes) -> None:
    """Look at a picture's header; nothing is decoded.

    Raises:
        UnusableSample: it is no JPEG, PNG or WebP, or has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels, of odd metadata: not for a terminal
            width, height = Image.open(io.BytesIO(data), formats=PILLOW_NAMES).size
    except Image.DecompressionBombError:
        raise UnusableSample("too many pixels") from None
    except Exception:  # Pillow's parsers raise what they like on broken bytes
        raise UnusableSample("not an image") from None
    if width * height > MAX_PIXELS:
        raise UnusableSample("too many pixels", f"{width} x {height}, over {MAX_PIXELS}")


def _language(text: str, told: str | None, rules: Rules) -> str:
    """The language of a caption, by what the sample tells or by the rules."""
    code = told or (identify(text) if rules.language == "identify" else rules.fixed)
    if code is None or not is_language_code(code):
        raise UnusableSample("language", code or "none")
    return code


def identify(text: str) -> str:
    """The language of a text by its letters, of the 140 that the library knows; `und` where it has none.

    py3langid (BSD): naive Bayes on byte n-grams after Lui and Baldwin 2012 (langid.py); its model comes with
    the package.

    Raises:
        UserError: the library is not there.
    """
    try:
        from py3langid import classify
    except ImportError:
        raise UserError(
            "--language identify needs the extra `identify`; run pip install 'mmalign[identify]'"
        ) from None
    if not any(letter.isalpha() for letter in text):
        return "und"
    return str(classify(text)[0])
