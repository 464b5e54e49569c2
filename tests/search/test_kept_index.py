"""A kept index, loaded again and filtered, finds what brute force finds; what cannot be used is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from search.search_cases import exact_index
from shard_sets import make_pair, write_set
from tiny import tiny_model, tiny_run
from typer.testing import CliRunner

from mmalign.cli import app
from mmalign.core.commit import write_manifest
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.evaluation.ann.index import IndexConfig
from mmalign.evaluation.embedding_cache import cached_set
from mmalign.models.encoder import Encoder, load_encoder
from mmalign.search.corpus import SearchIndex
from mmalign.search.kept_index import (
    KeptIndex,
    build_index,
    check_target,
    read_index,
    write_index,
)

IMAGES = 120
# Search parameters that leave no vector out; IVF's lists hold all of them.
EXHAUSTIVE: list[dict[str, Any]] = [
    {"factory": "Flat"},
    {"factory": "Flat", "dims": 5},
    {"factory": "IVF4,Flat", "search": {"nprobe": [4]}},
    {"factory": "HNSW8,Flat", "build": {"efConstruction": 100}, "search": {"efSearch": [500]}},
    {"factory": "PCA6,IVF4,SQ8,RFlat", "search": {"nprobe": [4], "k_factor_rf": [200]}},
    # FAISS filters no FastScan without lists: it is searched deeper.
    {"factory": "PCA8,PQ4x4fs,RFlat", "search": {"k_factor_rf": [200]}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, and `set`: images with captions in English, each second also in Swahili, of three sources."""
    folder = tmp_path_factory.mktemp("kept")
    pairs = [make_pair(n, ("en", "sw") if n % 2 else ("en",)) for n in range(IMAGES)]
    write_set(folder / "set", [replace(p, source=f"s{n % 3}") for n, p in enumerate(pairs)])
    tiny_run(folder / "run")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Encoder:
    return load_encoder(folder / "run")


def keep(folder: Path, model: Encoder, tree: dict[str, Any]) -> tuple[KeptIndex, KeptIndex]:
    """The index in memory, and as it is read again."""
    config = validate(IndexConfig, tree, "test")
    built = build_index(model, folder / "set", config, folder / "cache")
    write_index(built, folder / "index")
    return built, read_index(folder / "index")


def unit(row_ND: np.ndarray) -> np.ndarray:
    return row_ND / np.linalg.norm(row_ND, axis=1, keepdims=True)


@pytest.mark.parametrize("tree", EXHAUSTIVE, ids=lambda tree: tree["factory"])
def test_loaded_again_and_filtered_it_equals_brute_force(
    folder: Path, model: Encoder, tree: dict[str, Any]
) -> None:
    built, kept = keep(folder, model, tree)
    assert kept.facts == {**built.facts, "files": kept.facts["files"]}
    embedded = cached_set(model, folder / "set", "set", folder / "cache").embedded
    query_QD = embedded.text_MD[:20]
    dims = tree.get("dims")
    score_QP = unit(query_QD[:, :dims]) @ unit(embedded.image_PD[:, :dims]).T
    odd, third = np.arange(IMAGES) % 2 == 1, np.arange(IMAGES) % 3 == 2
    for language, source, wanted in (
        (None, None, np.ones(IMAGES, bool)),
        ("sw", None, odd),
        (None, "s2", third),
        ("sw", "s2", odd & third),
    ):
        truth = np.sort(np.where(wanted, score_QP, -9))[:, ::-1][:, :10]
        scores, rows = kept.search("images", query_QD, 10, language, source)
        found = np.take_along_axis(score_QP, rows, 1)
        assert (rows >= 0).all() and wanted[rows].all()
        # Items that tie to the rounding of float32 may change places.
        assert found == pytest.approx(truth, abs=1e-6)
        again = built.search("images", query_QD, 10, language, source)
        assert np.array_equal(rows, again[1]) and np.array_equal(scores, again[0])
    _, rows = kept.search("captions", embedded.image_PD[:5], 7, "sw", "s0")
    for row in (kept.rows["captions"][i] for i in rows.flat):
        assert (row["lang"], row["source"]) == ("sw", "s0")
        assert all(kept.rows["images"][i]["source"] == "s0" for i in row["pictures"])


def test_the_manifest_says_what_was_indexed_and_how(folder: Path, model: Encoder) -> None:
    _, kept = keep(folder, model, EXHAUSTIVE[3])
    facts = json.loads((folder / "index" / "MANIFEST.json").read_text())
    assert facts["model_sha256"] == model.facts["sha256"]
    assert (
        facts["data_sha256"]
        == cached_set(model, folder / "set", "set", folder / "cache").data_sha256
    )
    assert (facts["dimension"], facts["factory"]) == (model.width, "HNSW8,Flat")
    assert (facts["build"], facts["search"]) == ({"efConstruction": 100}, {"efSearch": [500]})
    assert faiss.downcast_index(kept.vectors["images"]).hnsw.efSearch == 500
    assert (facts["images"], facts["captions"]) == (IMAGES, IMAGES * 3 // 2)
    assert kept.rows["images"][7]["sample"] == 7 and kept.rows["images"][7]["source"] == "s1"


def test_embeddings_that_an_older_version_cached_have_sources_too(
    folder: Path, model: Encoder, tmp_path: Path
) -> None:
    cache = cached_set(model, folder / "set", "set", tmp_path).folder
    for path in cache.glob("metadata/*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        text = "".join(json.dumps({**row, "source": None}) + "\n" for row in rows)
        path.write_text(text.replace(', "source": null', ""))
    facts = json.loads((cache / "MANIFEST.json").read_text())
    (cache / "MANIFEST.json").unlink()
    write_manifest(cache, {k: v for k, v in facts.items() if k != "files"})
    index = build_index(model, folder / "set", IndexConfig(factory="Flat"), tmp_path)
    assert [row["source"] for row in index.rows["images"][:4]] == ["s0", "s1", "s2", "s0"]


def test_vectors_stay_on_the_disk(tmp_path: Path) -> None:
    row_ND = np.random.default_rng(0).normal(size=(50_000, 128)).astype(np.float32)  # 26 MB
    index = KeptIndex({"kind": "faiss index"}, {}, {"images": [], "captions": []})
    for side in ("images", "captions"):
        index.vectors[side] = faiss.IndexFlatIP(128)
        index.vectors[side].add(row_ND)
    write_index(index, tmp_path / "index")

    def private_kb() -> int:
        found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
        assert found
        return int(found[1])

    before = private_kb()
    kept = read_index(tmp_path / "index")
    assert kept.vectors["images"].search(row_ND[:1], 1)[1].tolist() == [[0]]
    assert private_kb() - before < 10_000


def test_the_page_searches_a_kept_index_as_it_searches_shards(folder: Path, model: Encoder) -> None:
    _, kept = keep(folder, model, EXHAUSTIVE[2])
    page = SearchIndex(model, folder / "set", kept)
    exact = exact_index(model, folder / "set", folder / "cache")
    image = exact.read_image(3)
    assert page.read_image(3) == image
    for arguments in ((), ("sw",), (None, "s1"), ("sw", "s1")):
        for found, wanted in (
            (page.by_text("dog", 5, *arguments), exact.by_text("dog", 5, *arguments)),
            (page.by_image(image, 3, *arguments), exact.by_image(image, 3, *arguments)),
        ):
            assert json.loads(json.dumps(found), parse_float=lambda x: round(float(x), 5)) == (
                json.loads(json.dumps(wanted), parse_float=lambda x: round(float(x), 5))
            )


def test_what_does_not_belong_to_the_index_is_refused(
    folder: Path, model: Encoder, tmp_path: Path
) -> None:
    _, kept = keep(folder, model, {"factory": "SQ8"})
    query = np.ones((1, model.width), np.float32)
    for arguments, words in (
        ((query, 3, "fr"), "language `fr` is not in the index; it has en, sw"),
        ((query, 3, None, "web"), "source `web` is not in the index; it has s0, s1, s2"),
        ((query[:, :3], 3), f"the query has 3 dimensions, the vectors of the index {model.width}"),
    ):
        with pytest.raises(UserError, match=words):
            kept.search("images", *arguments)
    with pytest.raises(UserError, match="not the model that the index was built with"):
        SearchIndex(
            load_encoder(tiny_run(tmp_path / "run", tiny_model(seed=9))), folder / "set", kept
        )
    write_set(tmp_path / "set", [make_pair(0, ("en",))])
    with pytest.raises(UserError, match="not the data that the index was built with"):
        SearchIndex(model, tmp_path / "set", kept)
    with pytest.raises(UserError, match="FAISS has no GPU here"):
        kept.to_gpu()


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"factory": "PQ3"}, "cannot build `PQ3` from vectors of 16 dimensions"),
        ({"factory": "IVF500,Flat"}, "cannot build `IVF500,Flat` from 120 vectors"),
        ({"factory": "Flat", "dims": 999}, "`dims` is 999, but"),
    ],
)
def test_an_index_that_is_of_no_use_is_not_kept(
    folder: Path, model: Encoder, tree: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        keep(folder, model, tree)


def test_the_command_keeps_an_index_and_nothing_of_others_is_replaced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    out = tmp_path / "kept"
    words = ["index", "run", "--data", "set", "--factory", "HNSW8,Flat", "--cache", "cache"]
    words += ["build.efConstruction=50", "search.efSearch=[32]", "--out"]
    done = CliRunner().invoke(app, [*words, str(out)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert f"{out}: 120 images, 180 distinct captions" in done.output
    before = read_index(out).facts
    assert (before["build"], before["search"]) == ({"efConstruction": 50}, {"efSearch": [32]})
    again = CliRunner().invoke(app, [*words, str(out), "dims=4"])
    assert again.exit_code == 0 and read_index(out).facts["dims"] == 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for extra, sentence in (
        ([str(tmp_path / "mine")], "holds something that is not an index"),
        ([str(out), "search.efSearch=[16,32]"], "`search` has several values"),
        ([str(out), "builds.efConstruction=3"], "did you mean `build`"),
    ):
        refused = CliRunner().invoke(app, [*words, *extra])
        assert sentence in str(refused.exception)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_folder_that_is_no_index_or_cut_off_is_refused(folder: Path, model: Encoder) -> None:
    with pytest.raises(UserError, match="not a kept index; make one with `mmalign index`"):
        read_index(folder / "set")
    keep(folder, model, {"factory": "Flat"})
    path = folder / "index" / "images.faiss"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"images\.faiss: damaged"):
        read_index(folder / "index")


def test_a_folder_whose_name_faiss_cannot_take_is_known_before_the_work(tmp_path: Path) -> None:
    # As Python reads a name that is not ASCII in a POSIX locale; the command line makes a sentence of it.
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        check_target(tmp_path / "sortie-\udcc3\udca9")
