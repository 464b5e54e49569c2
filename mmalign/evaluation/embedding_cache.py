"""Embeddings of a shard set, computed once and kept on disk in clip-retrieval's layout.

    model's sha256 + data's sha256 -> <cache>/<both, cut short>/     there: verified and read; else: computed
                                      (and that of a prompt)
        img_emb/img_emb_0.npy        float32, unit length; row i is the image that caption i describes
        text_emb/text_emb_0.npy      float32, unit length; row i is caption i
        metadata/metadata_0.jsonl    image_path (the sample's key), caption, lang, sample, picture_id,
                                     source
        metadata/metadata_0.parquet  the same for clip-retrieval, where pyarrow is installed
        MANIFEST.json                written last: model, data, normalisation, sha256 of each file

clip-retrieval (rom1504/clip-retrieval, `clip_inference/writer.py`) pairs one image with one caption per row.
So an image with several captions has several rows, and an image without any has one, whose vector is zero.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.core.commit import MANIFEST, check_writable, committed_folder, verify
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.core.languages import canonical_language
from mmalign.core.precision import inference_precision
from mmalign.data.preprocess import PIXELS
from mmalign.data.shards.manifest import read_manifest
from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation.embed import EmbeddedSet, embed_set
from mmalign.models.encoder import DualModel
from mmalign.results.results import writing

ROWS_PER_FILE = 1_000_000


@dataclass(frozen=True)
class CachedSet:
    """A complete shard set as vectors, from disk; the captions are sorted by image.

    Attributes:
        picture_id_P: int64, equal where images are equal, in every data set.
        data_sha256: of the data set's manifest.
        sha256: file name -> hexadecimal sha256 of its bytes, of the files with vectors.
    """

    embedded: EmbeddedSet
    picture_id_P: np.ndarray
    folder: Path
    data_sha256: str
    sha256: dict[str, str]


def cached_set(encoder: DualModel, shards: Path, name: str, cache: Path) -> CachedSet:
    """The embeddings of a shard set by a model; they are computed if the cache does not hold them.

    For one process: the ranks of a run would write the same folder.

    Args:
        cache: folder of all cached embeddings; another model or other data get a folder of their own.

    Raises:
        UserError: no data set, or the cached files are damaged or of another model.
    """
    sha256 = {"model_sha256": encoder.facts["sha256"], "data_sha256": read_manifest(shards).sha256}
    # 16 digits of each keep the name short; the manifest has all of them.
    folder = cache / "-".join(one[:16] for one in sha256.values())
    key = {**sha256, "pixels": PIXELS}  # another decoding of images makes other vectors
    if (precision := inference_precision(encoder.precision)) != "fp32":
        key["precision"] = precision
        folder = folder.with_name(f"{folder.name}-{precision}")
    if prompt := encoder.prompts.query:
        key["prompt"] = prompt
        folder = folder.with_name(
            f"{folder.name}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"
        )
    if not folder.exists():
        check_writable(folder, is_folder=True)
        say(f"embedding {shards} into {folder}")
        shard_set = ShardSet(shards)
        embedded = embed_set(encoder, shard_set, name)
        facts = {**key, "model": encoder.facts, "data": str(shards)}
        with writing(folder):
            write_embeddings(folder, embedded, shard_set, facts)
        shard_set.close()
    return read_embeddings(folder, key, name)


def write_embeddings(
    folder: Path, embedded: EmbeddedSet, shard_set: ShardSet, facts: dict[str, Any]
) -> None:
    """Write the embeddings of a set; the manifest states the `facts`, among them `read_embeddings`' `key`."""
    # Of each row the image and the caption, -1 where the image has none.
    bare = np.setdiff1d(np.arange(len(embedded.image_PD)), embedded.picture_M)
    image_R = np.concatenate([embedded.picture_M, bare])
    caption_R = np.concatenate([np.arange(len(embedded.texts)), np.full(len(bare), -1)])
    order = np.argsort(image_R, kind="stable")  # captions of an image keep their order
    image_R, caption_R = image_R[order], caption_R[order]
    starts = range(0, len(image_R), ROWS_PER_FILE)
    digits = len(str(len(starts) - 1))  # clip-retrieval reads the files in the order of their names
    info = {
        **facts,
        "layout": "clip-retrieval",
        # clip-retrieval mostly writes float16; these give the numbers of vectors that were never stored.
        "dtype": "float32",
        "normalised": True,
        "rows": len(image_R),
        "pictures": len(embedded.image_PD),
        "captions": len(embedded.texts),
        "dimension": embedded.image_PD.shape[1],
    }
    with committed_folder(folder, info) as new:
        for kind in ("img_emb", "text_emb", "metadata"):
            (new / kind).mkdir()
        for number, start in enumerate(starts):
            part = slice(start, start + ROWS_PER_FILE)
            name = f"{number:0{digits}d}"
            rows = _metadata(embedded, shard_set, image_R[part], caption_R[part])
            text_RD = embedded.text_MD[caption_R[part]]  # a copy; -1 takes the last row
            text_RD[caption_R[part] < 0] = 0
            np.save(new / f"img_emb/img_emb_{name}.npy", embedded.image_PD[image_R[part]])
            np.save(new / f"text_emb/text_emb_{name}.npy", text_RD)
            with (new / f"metadata/metadata_{name}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            if find_spec("pyarrow"):
                import pyarrow
                import pyarrow.parquet

                table = pyarrow.Table.from_pylist(rows)
                pyarrow.parquet.write_table(table, new / f"metadata/metadata_{name}.parquet")


def read_embeddings(folder: Path, key: dict[str, str], name: str) -> CachedSet:
    """The set that `write_embeddings` wrote, after every byte was checked.

    Raises:
        UserError: damaged files, or a manifest that does not state what `key` does.
    """
    try:
        info = verify(folder)
    except UserError as error:
        raise UserError(f"{error}; delete {folder} and repeat, it will be made again") from None
    for field, wanted in key.items():
        if info.get(field) != wanted:
            raise UserError(
                f"{folder / MANIFEST}: `{field}` is {info.get(field)}, wanted is {wanted}; delete "
                f"{folder} and repeat"
            )
    # Split as bytes, at line feeds only: a caption may hold what text mode takes for a line end.
    files = sorted(folder.glob("metadata/*.jsonl"))
    rows = [json.loads(line) for path in files for line in path.read_bytes().split(b"\n") if line]
    picture_id_R = np.array([row["picture_id"] for row in rows], np.int64)
    # Rows are sorted by image: where the id changes, the next image begins.
    first_P = np.flatnonzero(np.r_[True, picture_id_R[1:] != picture_id_R[:-1]])
    described = [number for number, row in enumerate(rows) if row["caption"] is not None]
    embedded = EmbeddedSet(
        name=name,
        image_PD=_vectors(folder, "img_emb")[first_P],
        text_MD=_vectors(folder, "text_emb")[described],
        sample_P=[rows[first]["sample"] for first in first_P],
        picture_M=(np.searchsorted(first_P, described, side="right") - 1).astype(np.int64),
        language_M=np.array([canonical_language(rows[number]["lang"]) for number in described]),
        texts=[rows[number]["caption"] for number in described],
        # Older versions wrote no sources.
        source_P=[rows[first]["source"] for first in first_P if "source" in rows[first]],
    )
    sha256 = {f: facts["sha256"] for f, facts in info["files"].items() if f.endswith(".npy")}
    return CachedSet(embedded, picture_id_R[first_P], folder, info["data_sha256"], sha256)


def _metadata(
    embedded: EmbeddedSet, shard_set: ShardSet, image_R: np.ndarray, caption_R: np.ndarray
) -> list[dict[str, Any]]:
    return [
        {
            "image_path": shard_set.keys[sample := embedded.sample_P[image]],
            "caption": embedded.texts[caption] if caption >= 0 else None,
            "lang": str(embedded.language_M[caption]) if caption >= 0 else None,
            "sample": sample,
            "picture_id": int(shard_set.picture_ids[sample]),
            "source": embedded.source_P[image],
        }
        for image, caption in zip(image_R.tolist(), caption_R.tolist(), strict=True)
    ]


def _vectors(folder: Path, kind: str) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(folder.glob(f"{kind}/*.npy"))])
