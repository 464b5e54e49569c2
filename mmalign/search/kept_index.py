"""FAISS indexes of a shard set: built once, kept in a folder, opened memory-mapped, searched with a filter.

    shards + model -> cached_set -> build_index -> KeptIndex -> write_index -> folder
    folder         -> read_index (vectors stay on the disk)  -> KeptIndex
    queries' vectors, k, language, source -> KeptIndex.search -> scores, row numbers

    images.faiss, images.jsonl      row i: `key`, `sample` (number in the set), `picture_id`, `source`
    captions.faiss, captions.jsonl  row i: `lang`, `text`, `source`, `pictures` (rows of their images)
    MANIFEST.json                   written last: model, data, dimension, metric, how the indexes were built

A caption that several images of one source share is one row.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmalign.core.commit import MANIFEST, check_writable, committed_folder, verify
from mmalign.core.errors import UserError
from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation.ann.index import (
    TRAIN_ROWS,
    IndexConfig,
    faiss_reason,
    new_index,
    set_parameters,
    training_rows,
)
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.embedding_cache import cached_set
from mmalign.evaluation.truncate import check_dims, truncate
from mmalign.models.encoder import DualModel
from mmalign.results.results import environment

KIND = "faiss index"
SIDES = ("images", "captions")
Side = Literal["images", "captions"]
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class KeptIndex:
    """Two FAISS indexes, of the images and of the captions of a shard set, and what their rows are.

    Attributes:
        facts: what MANIFEST.json states: `model`, `model_sha256`, `data`, `data_sha256`, `dimension`,
            `metric`, `factory`, `build`, `search`, `train_rows`, `dims`.
        vectors: `images` and `captions` -> their FAISS index.
        rows: `images` and `captions` -> the objects that the jsonl files hold.
    """

    facts: dict[str, Any]
    vectors: dict[str, Any]
    rows: dict[str, list[Row]]

    @property
    def languages(self) -> list[str]:
        return sorted({row["lang"] for row in self.rows["captions"]})

    @property
    def sources(self) -> list[str]:
        return sorted({row["source"] for row in self.rows["images"]})

    def search(
        self,
        side: Side,
        query_QD: np.ndarray,
        k: int,
        language: str | None = None,
        source: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows of one side that the index finds nearest to each query.

        Args:
            query_QD: float32, unit length, of the model that the index was built with.
            language: captions in it, or images with a caption in it; None: all.
            source: captions and images from it; None: all.

        Returns:
            Scores (Q, K) float32, descending, and rows (Q, K) int64, -1 where nothing more was found;
            K = min(k, rows). An index that searches a part of its lists may find fewer than there are.

        Raises:
            UserError: a language or a source that the set lacks, or vectors of another width.
        """
        index, width = self.vectors[side], self.facts["dimension"]
        if query_QD.shape[1] != width:
            raise UserError(
                f"the query has {query_QD.shape[1]} dimensions, the vectors of the index {width}; encode it "
                f"with {self.facts['model']['path']}"
            )
        query_QD = truncate(np.ascontiguousarray(query_QD, np.float32), self.facts["dims"])
        k = min(k, index.ntotal)
        if language is None and source is None:
            scores, rows = index.search(query_QD, k)
            return scores, rows
        return _search_chosen(index, query_QD, k, self._chosen(side, language, source))

    # An index lives as long as its process, and a filter is asked for again and again.
    @lru_cache(maxsize=256)  # noqa: B019
    def _chosen(self, side: Side, language: str | None, source: str | None) -> np.ndarray:
        """Which rows pass the filter."""
        for name, wanted, known in (
            ("language", language, self.languages),
            ("source", source, self.sources),
        ):
            if wanted is not None and wanted not in known:
                raise UserError(f"{name} `{wanted}` is not in the index; it has {', '.join(known)}")
        rows = self.rows[side]
        chosen = np.array([source in (None, row["source"]) for row in rows])
        if language is not None and side == "captions":
            chosen &= np.array([row["lang"] == language for row in rows])
        elif language is not None:
            described = np.zeros(len(rows), bool)
            for row in self.rows["captions"]:
                described[row["pictures"]] |= row["lang"] == language
            chosen &= described
        return chosen

    def to_gpu(self) -> "KeptIndex":
        """The same on all GPUs of this process, by FAISS's own package for GPUs.

        Raises:
            UserError: FAISS without GPUs, or an index that it has for CPUs only.
        """
        import faiss

        if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
            raise UserError(
                "FAISS has no GPU here; install a faiss-gpu package, or search on the CPU"
            )
        try:
            vectors = {side: faiss.index_cpu_to_all_gpus(one) for side, one in self.vectors.items()}
        except RuntimeError as error:
            raise UserError(
                f"{self.facts['factory']}: not for GPUs ({faiss_reason(error)})"
            ) from None
        return KeptIndex(self.facts, vectors, self.rows)


def _search_chosen(
    index: Any, query_QD: np.ndarray, k: int, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """As `KeptIndex.search`, among the chosen rows."""
    import faiss

    known: Any = faiss  # its signatures are those of C++
    selector = known.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))
    try:
        parameters = _parameters(index, selector)
        scores, rows = index.search(query_QD, k, params=parameters)
        return scores, rows
    except (RuntimeError, AssertionError):
        pass  # FAISS filters no PQ, FastScan without lists, NSG or GPU index
    wanted, depth = min(k, int(chosen.sum())), k
    while True:
        depth = min(4 * depth, index.ntotal)
        scores, rows = index.search(query_QD, depth)
        keep = (rows >= 0) & chosen[rows]
        if depth == index.ntotal or (keep.sum(1) >= wanted).all():
            break
    first = np.argsort(~keep, axis=1, kind="stable")[:, :k]
    keep, scores, rows = (np.take_along_axis(one, first, 1) for one in (keep, scores, rows))
    return np.where(keep, scores, -np.inf), np.where(keep, rows, -1)


def _parameters(index: Any, selector: Any) -> Any:
    """FAISS's search parameters with a selector; what was set on the index stays as it is."""
    import faiss

    known: Any = faiss  # its signatures are those of C++
    index = faiss.downcast_index(index)
    # Wrappers hand the parameters of the index inside on. Parameters that are not given here would be FAISS's
    # defaults (nprobe=1), not those of the index.
    if isinstance(index, faiss.IndexPreTransform):
        return known.SearchParametersPreTransform(index_params=_parameters(index.index, selector))
    if isinstance(index, faiss.IndexRefine):
        inner = _parameters(index.base_index, selector)
        return known.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        given = {"nprobe": index.nprobe, "max_codes": index.max_codes}
        return known.SearchParametersIVF(sel=selector, **given)
    if isinstance(index, faiss.IndexHNSW):
        return known.SearchParametersHNSW(sel=selector, efSearch=index.hnsw.efSearch)
    return known.SearchParameters(sel=selector)


def build_index(model: DualModel, shards: Path, config: IndexConfig, cache: Path) -> KeptIndex:
    """Index a shard set in memory; its vectors are encoded, or read from the folder `cache`.

    Raises:
        UserError: no data set, no captions in it, a model without an image tower, or an index that FAISS
            cannot build from these vectors.
    """
    check_dims(config.dims, model.width, "dims")
    width = config.dims or model.width
    with _refusals(config, f"vectors of {width} dimensions"):  # before they are encoded
        new_index(config, width)
    cached = cached_set(model, shards, shards.resolve().name, cache)
    embedded, shard_set = cached.embedded, ShardSet(shards)
    # Caches of older versions lack the sources.
    sources = embedded.source_P or [shard_set.read(i).source for i in embedded.sample_P]
    images = [
        {"key": shard_set.keys[i], "sample": i, "picture_id": picture_id, "source": source}
        for i, picture_id, source in zip(
            embedded.sample_P, cached.picture_id_P.tolist(), sources, strict=True
        )
    ]
    captions, text_ND = _distinct_captions(embedded, sources)
    facts = {
        "kind": KIND,
        "model": model.facts,
        "model_sha256": model.facts["sha256"],
        "data": str(shards),
        "data_sha256": cached.data_sha256,
        "dimension": model.width,
        "metric": "inner product of float32 vectors of unit length",
        "images": len(images),
        "captions": len(captions),
        **config.model_dump(mode="json"),
        "train_rows": config.train_rows or TRAIN_ROWS,
        "environment": environment(),
    }
    sides = {"images": embedded.image_PD, "captions": text_ND}
    vectors = {side: _filled(config, truncate(rows, config.dims)) for side, rows in sides.items()}
    return KeptIndex(facts, vectors, {"images": images, "captions": captions})


def _distinct_captions(embedded: EmbeddedSet, sources: list[str]) -> tuple[list[Row], np.ndarray]:
    """The rows of captions.jsonl, and their vectors."""
    rows: dict[tuple[str, str, str], Row] = {}
    first = []
    described = zip(embedded.picture_M.tolist(), embedded.language_M.tolist(), strict=True)
    for number, (picture, lang) in enumerate(described):
        text, source = embedded.texts[number], sources[picture]
        row = {"lang": lang, "text": text, "source": source, "pictures": []}
        kept = rows.setdefault((lang, text, source), row)
        kept["pictures"].append(picture)
        if kept is row:
            first.append(number)
    return list(rows.values()), embedded.text_MD[first]


def _filled(config: IndexConfig, row_ND: np.ndarray) -> Any:
    with _refusals(config, f"{len(row_ND):,} vectors of {row_ND.shape[1]} dimensions"):
        index = new_index(config, row_ND.shape[1])
        index.train(training_rows(row_ND, config.train_rows or TRAIN_ROWS, seed=0))
        index.add(row_ND)
        set_parameters(index, config.settings[0])
    return index


@contextmanager
def _refusals(config: IndexConfig, vectors: str) -> Iterator[None]:
    """What FAISS refuses, as a UserError."""
    try:
        yield
    except (RuntimeError, AssertionError, MemoryError) as error:
        raise UserError(
            f"FAISS cannot build `{config.factory}` from {vectors} ({faiss_reason(error)}); choose another "
            "factory"
        ) from None


def check_target(folder: Path) -> None:
    """A UserError where `folder` holds anything but an index, which a new one replaces."""
    str(folder).encode()  # FAISS takes names in UTF-8 alone: a UnicodeEncodeError, before the work
    check_writable(folder, is_folder=True)
    if folder.is_dir() and any(folder.iterdir()) and _manifest(folder).get("kind") != KIND:
        raise UserError(f"{folder}: holds something that is not an index; give another --out")


def write_index(index: KeptIndex, folder: Path) -> None:
    """Write the folder, complete or not at all."""
    import faiss

    check_target(folder)
    with committed_folder(folder, index.facts) as new:
        for side in SIDES:
            faiss.write_index(index.vectors[side], str(new / f"{side}.faiss"))
            with (new / f"{side}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in index.rows[side])


def read_index(folder: Path) -> KeptIndex:
    """Open a kept index; its vectors are memory-mapped, so that it may be larger than the memory.

    Raises:
        UserError: no index there, or files that are missing, cut off or of another version of FAISS.
    """
    import faiss

    if _manifest(folder).get("kind") != KIND:
        raise UserError(f"{folder}: not a kept index; make one with `mmalign index`")
    str(folder).encode()  # as above
    # By size only: a hash would read all vectors, which a memory map avoids.
    facts = verify(folder, hashes=False)
    rows, vectors = {}, {}
    for side in SIDES:
        lines = (folder / f"{side}.jsonl").read_bytes().split(b"\n")
        rows[side] = [json.loads(line) for line in lines if line]
        try:
            # Not IO_FLAG_MMAP, which maps the lists of IVF alone and reads everything else.
            vectors[side] = faiss.read_index(str(folder / f"{side}.faiss"), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            reason = faiss_reason(error)
            raise UserError(f"{folder}: FAISS cannot read it ({reason}); make it again") from None
    return KeptIndex(facts, vectors, rows)


def _manifest(folder: Path) -> dict[str, Any]:
    """What the manifest says; empty where there is none."""
    try:
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
