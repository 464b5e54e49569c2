"""`mmalign data index`: tars that others made -> the index and the manifest that our own shards have.

    tars, here or at URLs --one process per shard--> scan.py -> <shard>.index.jsonl, refusals
         --> manifest.json (last), refused.jsonl

The tars are only read, and each once. The result for each is kept in `.index/`, so that a second run scans
only shards that are new or changed. The same tars give the same index and manifest, whatever the number of
processes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from mmalign.core.commit import check_writable, exclusive, flush
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.core.languages import respelled_in_words
from mmalign.core.ray_tasks import map_parts
from mmalign.data.identify import identifier
from mmalign.data.parts import Part, has_parts, interleave, read_parts, write_part
from mmalign.data.shards.foreign_tars import (
    REFUSED,
    SCANS,
    Job,
    finished,
    jobs_of,
    scan_tars,
    tars_of,
    write_refusals,
)
from mmalign.data.shards.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Facts,
    Manifest,
    Shard,
    load_manifest,
    read_manifest,
    write_manifest,
)
from mmalign.data.shards.scan import Rules
from mmalign.data.storage.protocols import shown
from mmalign.data.storage.remote import is_remote


def index(
    source: str,
    rules: Rules,
    out: Path | None = None,
    processes: int = 1,
    part: Part = (0, 1),
) -> tuple[Manifest, Path] | None:
    """Index tars and write their manifest; returns it and its folder, None for a part.

    Args:
        source: a folder of tars, a pattern such as `shards/*.tar` or a brace list such as
            `shards/{00000..00099}.tar`; of this machine, or a URL.
        out: where index and manifest go; by default the folder of the tars.
        part: (i, n): scan the tars i, i + n, ... only, and write no manifest. When all parts are done,
            `merge` writes it. So does the same call without a part, which looks at every tar once more.

    Raises:
        UserError: no tars, none with a sample that can be used, or `out` holds something else.
    """
    tars = tars_of(source)
    out = _folder_of(source, tars, out)
    for model in rules.models:
        identifier(model)  # fails at once if the library or the model is missing
    if (out / MANIFEST).is_file() and not (out / REFUSED).is_file():  # made by a recipe
        raise UserError(f"{out}: holds a data set of another kind; name another folder with --out")
    _check_not_appended(out)
    check_writable(out, is_folder=True)
    jobs = jobs_of(tars, out, rules)
    if part[1] > 1:
        _index_part(out, rules, jobs, processes, part)
        return None
    with exclusive(out / SCANS):
        return _complete(out, rules, [job.shard for job in jobs], scan_tars(jobs, processes))


def index_by_ray(
    source: str, rules: Rules, out: Path | None, address: str
) -> tuple[Manifest, Path]:
    """As `index`, in parts that are tasks of the Ray cluster at an address."""
    out = _folder_of(source, tars_of(source), out)
    map_parts(partial(index, source, rules, out, 1), address)
    return merge(out)


def _folder_of(source: str, tars: Sequence[str], out: Path | None) -> Path:
    if out is None and is_remote(source):
        raise UserError(f"{shown(source)}: is a URL; name a folder of this machine with --out")
    return out or Path(tars[0]).parent


def merge(out: Path) -> tuple[Manifest, Path]:
    """Write the manifest of tars of which all parts are scanned: from the scans, no tar is looked at.

    Raises:
        UserError: a part or a scan is missing, or the parts are of different tars or rules.
    """
    parts = read_parts(out / SCANS)
    _check_not_appended(out)
    rules = Rules(**parts[0]["same"]["rules"])
    shards = [
        Shard(name, 0, 0, {}, path) for name, path in interleave([part["tars"] for part in parts])
    ]
    with exclusive(out / SCANS):
        return _complete(out, rules, shards, [finished(out, rules, shard) for shard in shards])


def _check_not_appended(out: Path) -> None:
    if (out / MANIFEST).is_file() and load_manifest(out).earlier:
        raise UserError(
            f"{out}: has shards that were appended, which a new index would lose; add tars with `mmalign "
            "data append`, or name another folder with --out"
        )


def is_in_parts(out: Path) -> bool:
    """Whether parts of an index in `out` are done."""
    return has_parts(out / SCANS)


def _index_part(out: Path, rules: Rules, jobs: Sequence[Job], processes: int, part: Part) -> None:
    places = json.dumps([job.tar for job in jobs])
    same = {"rules": asdict(rules), "tars": hashlib.sha256(places.encode()).hexdigest()}
    with exclusive(out / SCANS / f"part-{part[0]}"):
        own = jobs[part[0] :: part[1]]
        scan_tars(own, processes)
        tars = [(job.shard.file, job.shard.path) for job in own]
        write_part(out / SCANS, part, same, {"tars": tars})


def _complete(
    out: Path, rules: Rules, shards: Sequence[Shard], scans: Sequence[dict[str, Any]]
) -> tuple[Manifest, Path]:
    write_refusals(out / REFUSED, out, shards, scans)
    if not any(scan["samples"] for scan in scans):
        counts = sum((Counter[str](scan["refused"]) for scan in scans), Counter[str]())
        reasons = ", ".join(f"{reason}: {count}" for reason, count in counts.most_common(3))
        raise UserError(
            f"{shards[0].path or out}: no sample of {len(shards)} shards can be used "
            f"({reasons or 'they hold no members'}); {out / REFUSED} names them"
        )
    info, files = index_info(out.resolve().name, rules, shards, scans)
    write_manifest(out, info, {REFUSED: flush(out / REFUSED), **files})
    return read_manifest(out), out


def index_info(
    name: str, rules: Rules, found: Sequence[Shard], scans: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Facts]]:
    """What the manifest of scanned tars says, and the files of its shards, for `write_manifest`."""
    files: dict[str, Facts] = {}
    shards, refused = [], {}
    ignored, respelled, filled = Counter[str](), Counter[str](), Counter[str]()
    for one, scan in zip(found, scans, strict=True):
        samples, languages = scan["samples"], scan["languages"]
        # All samples are captioned: those without a caption are refused.
        shard = Shard(
            one.file, samples, sum(languages.values()), languages, one.path, captioned=samples
        )
        shards.append(shard.to_json())
        files |= {shard.tar: scan["files"]["tar"], shard.index: scan["files"]["rows"]}
        ignored.update(scan["ignored"])
        respelled.update(scan["respelled"])
        filled.update(scan.get("filled", {}))
        if scan["refused"]:
            refused[one.file] = scan["refused"]
    recipe = {"index": rules.to_json()}
    info = {
        "name": name,
        "split": "train",
        "recipe": recipe,
        "recipe_sha256": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
        "format": FORMAT_VERSION,
        "captions": rules.to_json(),
        "refused": refused,
        "ignored": dict(sorted(ignored.items())),
        "shards": shards,
    }
    if respelled:
        info["respelled"] = dict(sorted(respelled.items()))
        say(respelled_in_words(respelled))
    if filled:
        info["filled"] = dict(filled.most_common())
        named = ", ".join(f"`{code}`: {n}" for code, n in filled.most_common(8))
        say(f"languages by --fallback, where captions had none or no valid code: {named}")
    return info, files
