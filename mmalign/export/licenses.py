"""The licence of a published model, and what the licences of its training data ask of it.

    --license, --license-name, --license-link -> check_license -> License -> front matter of the card
    lineage -> its data sets, with licences and attributions -> warnings, NOTICE, a line of the card

Whether a model is a derivative of its training data is not decided here: facts are named, nothing refused.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCard

from mmalign.core.commit import write_atomic
from mmalign.core.console import say
from mmalign.core.errors import UserError

NOTICE = "NOTICE"
# https://huggingface.co/docs/hub/repositories-licenses
_IDENTIFIERS = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++
osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 gemma unknown other
"""
IDENTIFIERS = frozenset(_IDENTIFIERS.split())
# Conditions of data -> how their licences state them. A licence of the model that states one too meets it.
_CONDITIONS = {
    "share-alike": re.compile(r"\bsa\b|share.?alike|\bodbl\b|\b[al]?gpl\b|\bgfdl\b|sharing", re.I),
    "non-commercial": re.compile(r"\bnc\b|non.?commercial|flickr's terms|research", re.I),
    "no derivatives": re.compile(r"\bnd\b|no.?deriv", re.I),
    "not stated": re.compile(r"unknown|not stated|\bsee the\b", re.I),
}
_ASKS_NOTHING = re.compile(r"cc0|public.?domain|\bpddl\b|unlicense|wtfpl|unknown", re.I)


class License(NamedTuple):
    """Fields of the hub's front matter."""

    identifier: str
    name: str | None = None  # of `other`
    link: str | None = None  # to the text of `other`


def check_license(identifier: str | None, name: str | None, link: str | None) -> License | None:
    """The licence that a user gave, or None; a UserError where the hub would refuse it."""
    if identifier == "other":
        if not name or not link:
            raise UserError("--license other: give its --license-name and --license-link too")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name):
            raise UserError(
                f"--license-name {name!a}: not a name for the hub; use small letters, digits, dots and "
                "hyphens, such as my-license-1.0"
            )
        if not re.fullmatch(r"https?://[^\s()<>]+", link):
            raise UserError(
                f"--license-link {link!a}: not a URL; give the one of the licence's text"
            )
        return License(identifier, name, link)
    if name or link:
        raise UserError(
            "--license-name and --license-link belong to --license other; give that too"
        )
    if identifier is not None and identifier not in IDENTIFIERS:
        wanted = identifier.lower().replace(" ", "-")
        near = sorted(one for one in IDENTIFIERS if one.startswith(wanted.partition("-")[0]))
        known = f"such as {', '.join(near)}" if near else "such as apache-2.0 or cc-by-4.0"
        raise UserError(
            f"--license {identifier!a}: not an identifier of the hub ({known}); the list is at "
            "https://huggingface.co/docs/hub/repositories-licenses, and for any other licence give --license "
            "other with --license-name and --license-link"
        )
    return License(identifier) if identifier is not None else None


def license_of(card: Path) -> License | None:
    """The licence in the front matter of a model card; None: it names none."""
    data = ModelCard.load(card).data
    given = data.get("license")
    return License(given, data.get("license_name"), data.get("license_link")) if given else None


def generations(lineage: Any) -> Iterator[dict[str, Any]]:
    """The model's own lineage, then its parent's, and so on."""
    while isinstance(lineage, dict) and lineage:
        yield lineage
        lineage = lineage.get("parent")


def data_sets(lineage: Any) -> list[dict[str, Any]]:
    """The sets of shards that a model and its parents were trained on, each once."""
    sets: dict[str, dict[str, Any]] = {}
    for data in (data for one in generations(lineage) for data in one.get("data") or ()):
        if "manifest_sha256" in data:  # not the files of a text task
            sets.setdefault(data["manifest_sha256"], data)
    return list(sets.values())


def conditions(lineage: Any) -> dict[str, str]:
    """Condition -> the licences of training data that state it, in one line."""
    names = {name for data in data_sets(lineage) for name in data.get("licenses") or {}}
    found = {
        condition: "; ".join(sorted(name for name in names if pattern.search(name)))
        for condition, pattern in _CONDITIONS.items()
    }
    return {condition: names for condition, names in found.items() if names}


def warn_about_data(lineage: Any, license: License | None) -> None:
    """Say which licences of the training data the licence of the model may contradict."""
    found = conditions(lineage)
    if license is None:
        known = "; ".join(f"{names} ({one})" for one, names in found.items())
        tail = f"; training data: {known}" if known else ""
        say(f"no --license: the card names none, so others may not use the model{tail}")
        return
    given = license.name or license.identifier
    for condition, names in found.items():
        if not _CONDITIONS[condition].search(given):
            say(
                f"warning: training data are {condition} ({names}), and the model's licence is "
                f"{given}; check that the one allows the other"
            )


def write_notice(lineage: Any, folder: Path) -> None:
    """Write `folder/NOTICE` where training data have a licence that asks to name their authors."""
    lines = []
    for data in data_sets(lineage):
        licenses = {
            name: count
            for name, count in (data.get("licenses") or {}).items()
            if not _ASKS_NOTHING.search(name)
        }
        if not licenses:
            continue
        lines += [
            "",
            f"{data['name']}, {data['split']} (manifest sha256 {data['manifest_sha256']})",
        ]
        lines += [f"  {count:,} images: {name}" for name, count in licenses.items()]
        for text, count in (data.get("attributions") or {}).items():
            lines.append(f"  {count:,} images: {' '.join(text.split())}")
        if not data.get("attributions"):
            lines.append(
                "  The authors are named in the shards, sample by sample, where the source names them."
            )
    if lines:
        head = "The model in this folder was trained on the data below, and holds no copy of them."
        write_atomic(folder / NOTICE, "\n".join([head, *lines]) + "\n")
