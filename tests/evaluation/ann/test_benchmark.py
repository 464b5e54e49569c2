"""The benchmark from shards to faiss.csv, on real small indexes; and its advice on rows made by hand."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_sets import make_pair, write_set

from mmalign.core.batch import Pair
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.evaluation.ann.benchmark import run_faiss
from mmalign.evaluation.ann.config import FaissConfig
from mmalign.evaluation.ann.results import Row, best_at, recommend, throughput_at
from mmalign.models.prompts import NO_PROMPTS
from mmalign.results.protocol import sentence
from mmalign.results.results import read_results

INDEXES: list[dict[str, Any]] = [
    {"factory": "Flat"},
    {"factory": "HNSW8,Flat", "search": {"efSearch": [4, 200]}},
    {"factory": "IVF4,PQ4x4,RFlat", "search": {"nprobe": [1, 4], "k_factor_rf": [1, 40]}},
    {"factory": "SQ8"},
    {"factory": "PQ7"},
    {"factory": "IVF100000,Flat", "search": {"nprobe": [1]}},
    {"factory": "HNSW8,Flat", "build": {"efConstruction": 1}, "search": {"efSearch": [4]}},
    {"factory": "Flat", "dims": 4},
]


class Clustered:
    """Images around ten centres; captions near theirs with an offset, the modality gap of real models."""

    prompts, precision = NO_PROMPTS, "auto"

    def __init__(self, pairs: Sequence[Pair]) -> None:
        rng = np.random.default_rng(0)
        centre = rng.normal(size=(10, 16))
        self.facts: dict[str, Any] = {"path": "model", "sha256": "a" * 64, "step": 1}
        self.gap = rng.normal(size=16)
        self.width = 16
        self.vectors: dict[bytes | str, np.ndarray] = {}
        for number, pair in enumerate(pairs):
            picture = centre[number % 10] + 0.5 * rng.normal(size=16)
            self.vectors[pair.image] = picture
            for caption in pair.captions:
                self.vectors[caption.text] = picture + self.gap + 0.3 * rng.normal(size=16)

    def encode_images(self, images: Iterable[bytes], batch_size: int = 256) -> np.ndarray:
        return self._unit([self.vectors[image] for image in images])

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        return self._unit([self.vectors[text] for text in texts])

    @staticmethod
    def _unit(vectors: Sequence[np.ndarray]) -> np.ndarray:
        rows = np.array(vectors)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faiss")


@pytest.fixture(scope="module")
def tree(folder: Path) -> dict[str, Any]:
    """faiss.json of 40 test images in two languages, searched among 300."""
    pairs = [make_pair(n, ("en", "sw") if n < 40 else ("en",)) for n in range(300)]
    write_set(folder / "test", pairs[:40])
    write_set(folder / "pool", pairs[40:], samples_per_shard=100)
    return run_faiss(config(folder), Clustered(pairs), folder / "out")


def config(folder: Path, **fields: Any) -> FaissConfig:
    tree = {
        "name": "bench",
        "set": {"name": "s", "shards": str(folder / "test")},
        "pool": [str(folder / "pool")],
        "indexes": INDEXES,
        "checked": 20,
        "single_queries": 20,
        "repeats": 2,
        "cache": str(folder / "cache"),
        **fields,
    }
    return validate(FaissConfig, tree, "faiss.yaml")


def rows_of(tree: dict[str, Any], index: str, search: str = "") -> list[Row]:
    chosen = [row for row in tree["rows"] if row["index"] == index]
    return [row for row in chosen if row.get("search", "") == search]


def test_flat_finds_everything_and_loses_nothing(tree: dict[str, Any]) -> None:
    flat = rows_of(tree, "Flat")
    assert {row["direction"] for row in flat} == {"text_to_image", "image_to_text"}
    for row in flat:
        assert (row["recall@1"], row["recall@10"], row["recall@100"]) == (1, 1, 1)
        assert row["task_loss@1"] == row["task_loss@5"] == row["task_loss_worst@10"] == 0
        assert row["bytes_per_vector"] == pytest.approx(4 * 16, rel=0.02)


def test_rows_state_costs_and_recall_that_grows_and_equals_numpys(tree: dict[str, Any]) -> None:
    for row in (row for row in tree["rows"] if "refused" not in row):
        assert row["difference_to_numpy"] == 0
        assert 0 < row["recall@10"] <= 1
        assert row["queries_per_second"] >= row["queries_per_second_median"] > 0
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["train_s"] >= 0 and row["add_s"] > 0
    assert 16 <= rows_of(tree, "SQ8")[0]["bytes_per_vector"] < 24
    for index, low, high in (
        ("HNSW8,Flat", "efSearch=4", "efSearch=200"),
        ("IVF4,PQ4x4,RFlat", "nprobe=1,k_factor_rf=1", "nprobe=4,k_factor_rf=40"),
    ):
        narrow, wide = rows_of(tree, index, low)[0], rows_of(tree, index, high)[0]
        assert narrow["recall@10"] < wide["recall@10"]
    # All four lists, and as many candidates as there are vectors: nothing can be missed.
    exact = rows_of(tree, "IVF4,PQ4x4,RFlat", "nprobe=4,k_factor_rf=40")
    assert [row["recall@10"] for row in exact] == [1.0] * len(exact)
    assert max(tree["largest_score_difference_to_numpy"].values()) < 1e-6


def test_what_faiss_refuses_is_one_row_with_one_line(tree: dict[str, Any]) -> None:
    refused = {row["index"]: row["refused"] for row in tree["rows"] if "refused" in row}
    assert refused.keys() == {"PQ7", "IVF100000,Flat"}
    assert "should be a multiple of the number of subquantizers" in refused["PQ7"]
    for reason in refused.values():
        assert "\n" not in reason
        assert ".cpp" not in reason


def test_csv_and_json_agree(tree: dict[str, Any], folder: Path) -> None:
    with (folder / "out" / "faiss.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert json.loads((folder / "out" / "faiss.json").read_text(encoding="utf-8")) == tree
    assert len(lines) == len(tree["rows"])
    for line, row in zip(lines, tree["rows"], strict=True):
        held = {name: value for name, value in line.items() if value != ""}
        assert held == {
            name: str(value) for name, value in row.items() if value is not None and value != ""
        }


def test_parameters_of_building_make_another_index(tree: dict[str, Any]) -> None:
    by_default = rows_of(tree, "HNSW8,Flat", "efSearch=4")[0]["recall@10"]
    careless = rows_of(tree, "HNSW8,Flat efConstruction=1", "efSearch=4")[0]["recall@10"]
    assert careless < by_default - 0.1


def test_few_dimensions_are_judged_by_the_search_in_all(tree: dict[str, Any], folder: Path) -> None:
    row = rows_of(tree, "Flat dims=4")[0]
    assert row["bytes_per_vector"] == pytest.approx(4 * 4, rel=0.05)
    assert 0.1 < row["recall@10"] < 0.99
    assert row["task_recall@10"] < rows_of(tree, "Flat")[0]["task_recall@10"]
    with pytest.raises(UserError, match=r"`indexes.1.dims` is 17, but .* have 16 dimensions"):
        indexes = [{"factory": "Flat"}, {"factory": "SQ8", "dims": 17}]
        run_faiss(config(folder, indexes=indexes), Clustered([]), folder / "other")


def test_faiss_own_warning_of_few_training_vectors_is_passed_on(tree: dict[str, Any]) -> None:
    few = rows_of(tree, "IVF4,PQ4x4,RFlat", "nprobe=1,k_factor_rf=1")[0]
    assert few["warning"] == (
        "clustering 300 points to 16 centroids: please provide at least 624 training points"
    )
    assert rows_of(tree, "SQ8")[0]["warning"] == ""


def test_results_hold_the_task_recall_of_every_index(tree: dict[str, Any], folder: Path) -> None:
    results = read_results(folder / "out" / "results.json")
    for label in ("exact", "Flat", "HNSW8,Flat efSearch=4", "SQ8"):
        for lang in ("en", "sw", "mean"):
            for direction in ("text_to_image", "image_to_text"):
                name = f"faiss/s/{label}/{lang}/{direction}/recall@5"
                assert results.counts[name] == (80 if lang == "mean" else 40)
    chance = results.chance["faiss/s/exact/en/text_to_image/recall@10"]
    assert chance == pytest.approx(10 / 300)
    assert results.chance["faiss/s/exact/sw/image_to_text/recall@10"] == pytest.approx(10 / 40)
    row = rows_of(tree, "HNSW8,Flat", "efSearch=4")[0]
    name = "faiss/s/HNSW8,Flat efSearch=4/mean/text_to_image/recall@10"
    assert row["task_recall@10"] == pytest.approx(results.metrics[name])
    exact = results.metrics["faiss/s/exact/mean/text_to_image/recall@10"]
    assert row["task_loss@10"] == pytest.approx(exact - results.metrics[name])
    assert "300 pictures" in sentence(results.protocol["faiss/s"])


def test_what_was_searched_is_reported(tree: dict[str, Any]) -> None:
    assert tree["searches"]["text_to_image"]["vectors"] == 300
    assert tree["searches"]["image_to_text"]["vectors"] == 40 + 40 + 260
    assert tree["searches"]["text_to_image"]["queries"] == 80
    assert [len(one["sha256"]) for one in tree["embeddings"]] == [2, 2]
    assert tree["environment"]["faiss_options"]
    assert len(tree["recommendations"]) == 6


def test_configurations_that_cannot_be_compared_are_refused(folder: Path) -> None:
    for fields, words in (
        ({"indexes": [{"factory": "SQ8"}]}, "lacks `factory: Flat`"),
        ({"indexes": [{"factory": "Flat"}, {"factory": "Flat"}]}, "is listed twice"),
        ({"timed_at": 5}, "`timed_at` must be one of `recall_at`"),
        ({"pool": ["x", "x"]}, "`pool` lists a folder twice"),
        ({"pool": [str(folder / "test")]}, "`pool` lists a folder twice, or that of `set`"),
    ):
        with pytest.raises(UserError, match=words):
            config(folder, **fields)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"factory": "HNSW8,Fltt"}, "could not parse HNSW code description Fltt"),
        ({"factory": "Flatt"}, "could not parse index string Flatt"),
        ({"factory": "IVF9999999999,Fla"}, "could not parse code description Fla"),
        ({"factory": "IVF4,PQ4x4,Refine(SQ9)"}, "could not parse index string SQ9"),
        ({"factory": "IVF4,Flat", "search": {"nprob": [1]}}, "could not set parameter nprob"),
        (
            {"factory": "HNSW8", "search": {"efConstruction": [4, 400]}},
            "give `build: {efConstruction: 4}`",
        ),
        ({"factory": "HNSW8", "build": {"efSearch": 4}}, "`build.efSearch` is not used while"),
        ({"factory": "SQ8", "build": {"efConstruction": 4}}, "could not set parameter"),
        ({"factory": "HNSW8", "search": {"efSearch": [4, 4]}}, "`search.efSearch` lists a value"),
    ],
)
def test_an_index_that_faiss_does_not_know_is_refused_before_anything_runs(
    folder: Path, index: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=r"^faiss\.yaml: `indexes\.1`") as error:
        config(folder, indexes=[{"factory": "Flat"}, index])
    assert words in str(error.value)
    assert ".cpp" not in str(error.value) and "\n" not in str(error.value)


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file in its place")
    with pytest.raises(UserError, match=r"out/results\.json: cannot be written"):
        run_faiss(config(tmp_path), Clustered([]), tmp_path / "out")
    make = [make_pair(n, ("en",)) for n in range(20)]
    write_set(tmp_path / "test", make)
    (tmp_path / "cache").write_text("a file in its place")
    with pytest.raises(UserError, match=r"cache/\S+: cannot be written"):
        run_faiss(config(tmp_path, pool=[]), Clustered(make), tmp_path / "new")


def row(index: str, recall: float, speed: float, size: float, **fields: Any) -> Row:
    return {
        "direction": "text_to_image",
        "index": index,
        "search": "",
        "threads": 1,
        "recall@10": recall,
        "queries_per_second": 10 * speed,  # the best of the repeats
        "queries_per_second_median": speed,
        "single_queries": 1000,
        "p99_ms": 0.5,
        "warning": "",
        "bytes": 1000 * size,
        "bytes_per_vector": size,
        "train_s": 1.0,
        "add_s": 2.0,
        "task_recall@10": 0.9,
        "task_loss@10": 0.01,
        "task_loss_worst@10": 0.03,
        "task_loss_worst_language@10": "ar",
        **fields,
    }


ROWS = [
    row("Flat", 1.0, 1000, 512),
    row("HNSW32,Flat", 0.96, 9000, 772, search="efSearch=64"),
    row("HNSW32,Flat", 0.98, 500, 772, search="efSearch=512"),
    row("IVF,PQ", 0.91, 8000, 36, search="nprobe=4"),
    row("IVF,PQ", 0.955, 3100, 36, search="nprobe=16"),
    row("HNSW32,Flat", 0.999, 99999, 772, threads=8),
    {"direction": "text_to_image", "index": "Odd", "refused": "no"},
]


def test_advice_names_the_quickest_and_the_smallest() -> None:
    loses = (
        "of the right items' recall@10 it loses 0.010 in the mean of the languages and 0.030 in ar"
    )
    assert recommend(ROWS, 0.95) == (
        "For recall@10 >= 0.95, text to image: `HNSW32,Flat` with efSearch=64: recall@10 0.960, "
        "9.0 times Flat's throughput, 9,000 queries/s on 1 thread, p99 of 1,000 single queries 0.50 ms, "
        f"772 bytes per vector, built in 3.0 s; {loses}; the smallest that reaches it: `IVF,PQ` with "
        "nprobe=16: recall@10 0.955, 3.1 times Flat's throughput, 3,100 queries/s on 1 thread, "
        f"p99 of 1,000 single queries 0.50 ms, 36 bytes per vector, built in 3.0 s; {loses}."
    )


def test_advice_passes_on_what_faiss_warned_of() -> None:
    few = row("IVF4,Flat", 0.99, 5000, 512, warning="too few training points")
    assert recommend([ROWS[0], few], 0.9).endswith("; FAISS warns: too few training points.")


def test_advice_praises_neither_losses_that_are_none_nor_what_is_slower_than_flat() -> None:
    free = row("SQ8", 0.99, 5000, 128, **{"task_loss@10": 0.0, "task_loss_worst@10": 0.0})
    assert recommend([ROWS[0], free], 0.9).endswith("recall@10 it loses nothing in any language.")
    words = recommend(ROWS, 0.97)
    assert words.startswith(
        "For recall@10 >= 0.97, text to image: Flat; nothing that reaches it is"
    )
    assert "nothing but Flat reaches it" in recommend(ROWS, 0.99)


def test_the_best_of_each_index_at_a_recall() -> None:
    best = best_at(ROWS, 0.9, 10)
    assert [(one["index"], one["queries_per_second_median"]) for one in best] == [
        ("Flat", 1000),
        ("HNSW32,Flat", 9000),
        ("IVF,PQ", 8000),
        ("HNSW32,Flat", 99999),
    ]
    at_95 = [one for one in throughput_at(ROWS, 10) if one["recall_wished"] == 0.95]
    assert [one["search"] for one in at_95] == ["", "efSearch=64", "nprobe=16", ""]
