"""Numbers keep their count, interval, chance and protocol, through files and merges."""

import errno
import importlib.metadata
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmalign.core.errors import UserError
from mmalign.results.results import QUERIES, Results, environment, read_results
from mmalign.results.statistics import bootstrap_interval

KEYS = set(
    [
        "suite",
        "model",
        "metrics",
        "counts",
        "ci95",
        "chance",
        "protocol",
        "data",
        "environment",
        "baselines",
    ]
)


def make_results(value: float = 0.25, name: str = "retrieval/s/en/x/recall@1") -> Results:
    results = Results(suite="x", model={"path": "run", "sha256": "0" * 64, "step": 3})
    hits = np.zeros(40)
    hits[: round(40 * value)] = 1
    results.add(name, hits, chance=0.1)
    results.add("retrieval/s/mean/x/recall@1", value, count=40, chance=0.1)
    results.protocol["retrieval/s"] = {"how": "how"}
    results.environment = environment()
    return results


def test_hits_give_value_count_and_interval() -> None:
    results = make_results()
    name = "retrieval/s/en/x/recall@1"
    assert (results.metrics[name], results.counts[name], results.chance[name]) == (0.25, 40, 0.1)
    low, high = results.ci95[name]
    assert 0.1 <= low < 0.25 < high <= 0.4
    assert "retrieval/s/mean/x/recall@1" not in results.ci95


def test_what_is_written_is_read_back_with_its_baselines(tmp_path: Path) -> None:
    results = make_results()
    results.baselines["untrained"] = make_results(0.0)
    results.write(tmp_path / "new" / "results.json")
    assert read_results(tmp_path / "new" / "results.json") == results
    tree = json.loads((tmp_path / "new" / "results.json").read_text(encoding="utf-8"))
    assert tree.keys() == tree["baselines"]["untrained"].keys() == KEYS


def test_a_metric_without_a_count_is_not_written(tmp_path: Path) -> None:
    results = make_results()
    results.metrics["retrieval/s/sw/x/recall@1"] = 0.5
    with pytest.raises(AssertionError, match="without a count"):
        results.write(tmp_path / "results.json")
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"suite": "x"}', '"x"', "null"])
def test_another_file_is_no_results_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(UserError, match="no such file; `mmalign eval`"):
        read_results(path)
    path.write_text(text)
    with pytest.raises(UserError, match=r"results\.json: not a results file"):
        read_results(path)


def test_a_merge_takes_over_measurements_and_baselines() -> None:
    whole, other = make_results(), make_results(0.5, "text/t/en/clean/accuracy")
    other.protocol = {"text/t": {"how": "why"}}
    whole.baselines["untrained"] = make_results(0.0)
    other.baselines["untrained"] = make_results(0.1, "text/t/en/clean/accuracy")
    other.baselines["random"] = make_results(0.2)
    whole.merge(other)
    assert whole.metrics["retrieval/s/en/x/recall@1"] == 0.25
    assert whole.metrics["text/t/en/clean/accuracy"] == 0.5
    assert whole.metrics.keys() == whole.counts.keys() == whole.chance.keys()
    assert whole.protocol == {"retrieval/s": {"how": "how"}, "text/t": {"how": "why"}}
    assert whole.baselines["untrained"].metrics.keys() == whole.metrics.keys()
    assert whole.baselines["random"].metrics["retrieval/s/en/x/recall@1"] == 0.2
    assert whole.suite == "x"


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_interval_covers_the_truth_in_about_95_of_100_samples(share: float) -> None:
    rng = np.random.default_rng(0)
    samples = (rng.random((300, 200)) < share).astype(np.float64)
    intervals = [bootstrap_interval(sample, seed=i) for i, sample in enumerate(samples)]
    covered = np.mean([low <= share <= high for low, high in intervals])
    assert 0.9 < covered < 0.98
    width = np.mean([high - low for low, high in intervals])
    assert width == pytest.approx(2 * 1.96 * (share * (1 - share) / 200) ** 0.5, rel=0.05)


def test_several_queries_about_one_thing_are_drawn_together() -> None:
    """Each word is asked for in two directions: 300 things, not 600."""
    hits = (np.random.default_rng(0).random(300) < 0.25).astype(np.float64)
    ids = np.arange(300)
    results = Results("s", {})
    results.add("text/t/de/clean/accuracy", hits, ids=ids)
    results.add("text/t/fr/clean/accuracy", np.tile(hits, 2), ids=np.tile(ids, 2))
    low, high = results.ci95["text/t/de/clean/accuracy"]
    both = results.ci95["text/t/fr/clean/accuracy"]
    assert both[1] - both[0] == pytest.approx(high - low, rel=0.1)


def test_the_interval_is_a_function_of_the_values() -> None:
    values = np.random.default_rng(1).random(50)
    assert bootstrap_interval(values) == bootstrap_interval(values.copy())
    assert bootstrap_interval(np.ones(9)) == (1.0, 1.0)
    assert bootstrap_interval(np.zeros(9)) == (0.0, 0.0)


def test_the_environment_names_versions() -> None:
    assert {"python", "platform", "mmalign", "torch", "faiss-cpu"} <= environment().keys()
    assert all(environment().values())


def test_faiss_for_gpus_takes_the_place_of_the_package_for_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        if name == "faiss-cpu":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert environment()["faiss-gpu"] == "1" and "faiss-cpu" not in environment()


def with_queries() -> Results:
    results = Results("x", {})
    results.add("retrieval/s/en/x/recall@1", np.array([1.0, 0.0, 1.0]), ids=np.array([7, 8, 9]))
    results.add("retrieval/s/en/x/gap", np.array([0.25, -0.5, 0.1]))
    results.add("retrieval/s/mean/x/recall@1", 0.5, count=3)
    results.data["s"] = "0" * 64
    return results


def test_values_of_queries_come_back_small(tmp_path: Path) -> None:
    results = with_queries()
    results.baselines["untrained"] = with_queries()
    results.write(tmp_path / "results.json")
    found = read_results(tmp_path / "results.json")
    assert found == results and found.data == {"s": "0" * 64}
    assert found.values.keys() == {"retrieval/s/en/x/recall@1", "retrieval/s/en/x/gap"}
    assert found.values["retrieval/s/en/x/recall@1"].dtype == np.uint8
    np.testing.assert_array_equal(found.values["retrieval/s/en/x/recall@1"], [1, 0, 1])
    assert found.values["retrieval/s/en/x/gap"].dtype == np.float32
    np.testing.assert_allclose(found.values["retrieval/s/en/x/gap"], [0.25, -0.5, 0.1])
    np.testing.assert_array_equal(found.ids["retrieval/s/en/x"], [7, 8, 9])
    assert not found.baselines["untrained"].values
    assert "values" not in (tmp_path / "results.json").read_text(encoding="utf-8")


def test_the_same_results_are_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        with_queries().write(tmp_path / folder / "results.json")
    for file in ("results.json", QUERIES):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"results.json", QUERIES}


def test_values_of_other_results_are_never_read(tmp_path: Path) -> None:
    with_queries().write(tmp_path / "results.json")
    kept = (tmp_path / QUERIES).read_bytes()
    make_results(name="retrieval/s/sw/x/recall@1").write(tmp_path / "results.json")
    (tmp_path / QUERIES).write_bytes(kept)
    with pytest.raises(UserError, match=r"queries\.npz: not of the results beside it"):
        read_results(tmp_path / "results.json")
    plain = Results("x", {}, metrics={"a/b/c/d": 0.5}, counts={"a/b/c/d": 2})
    plain.write(tmp_path / "results.json")
    assert not (tmp_path / QUERIES).exists()


@pytest.mark.parametrize("damage", [b"", b"no zip", b"PK\x03\x04 cut"])
def test_damaged_values_are_reported(tmp_path: Path, damage: bytes) -> None:
    with_queries().write(tmp_path / "results.json")
    (tmp_path / QUERIES).write_bytes(damage)
    with pytest.raises(UserError, match=r"queries\.npz: damaged; measure again"):
        read_results(tmp_path / "results.json")


def test_what_is_not_a_number_is_null_and_read_back(tmp_path: Path) -> None:
    results = make_results()
    results.add("text/t/en/clean/spearman", np.nan, count=3, chance=np.inf)
    results.ci95["text/t/en/clean/spearman"] = (np.nan, np.nan)
    results.write(tmp_path / "results.json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    tree = json.loads(text, parse_constant=refuse)
    assert tree["metrics"]["text/t/en/clean/spearman"] is None
    found = read_results(tmp_path / "results.json")
    assert np.isnan(found.metrics["text/t/en/clean/spearman"])
    assert np.isnan(found.ci95["text/t/en/clean/spearman"]).all()
    assert found.metrics["retrieval/s/en/x/recall@1"] == 0.25


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_queries().write(tmp_path / "results.json")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("mmalign.results.results.write_json", "numpy.savez_compressed"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(UserError, match=r"results\.json: No space left on device; free"):
                make_results().write(tmp_path / "results.json")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_queries_about_one_thing_have_no_interval() -> None:
    results = Results("x", {})
    results.add("retrieval/s/en/x/recall@1", np.array([1.0]))
    results.add("retrieval/s/de/x/recall@1", np.array([1.0, 0.0]), ids=np.array([3, 3]))
    assert results.metrics["retrieval/s/de/x/recall@1"] == 0.5
    assert not results.ci95


def test_results_of_older_versions_are_read(tmp_path: Path) -> None:
    with_queries().write(tmp_path / "results.json")
    tree = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    del tree["data"]
    tree["protocol"] = {"retrieval/s": "One sentence."}  # version 0.1.0 had no fields
    (tmp_path / QUERIES).unlink()
    (tmp_path / "results.json").write_text(json.dumps(tree), encoding="utf-8")
    found = read_results(tmp_path / "results.json")
    assert found.metrics == with_queries().metrics and not found.data and not found.values
    assert found.protocol == {"retrieval/s": {"how": "One sentence."}}


def test_a_merge_takes_values_and_a_changed_copy_does_not() -> None:
    whole = Results("y", {})
    whole.merge(with_queries())
    assert whole.values.keys() == with_queries().values.keys()
    assert whole.ids.keys() == {"retrieval/s/en/x"} and whole.data == {"s": "0" * 64}
    assert not replace(whole, metrics={}).values


def test_a_value_that_is_no_number_is_null_in_the_file(tmp_path: Path) -> None:
    results = Results("suite", {}, metrics={"a": math.nan, "b": 0.5}, counts={"a": 1, "b": 1})
    results.ci95["a"] = (-math.inf, 0.1)
    results.write(tmp_path / "results.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    tree = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert tree["metrics"] == {"a": None, "b": 0.5} and tree["ci95"] == {"a": [None, 0.1]}
    assert math.isnan(read_results(tmp_path / "results.json").metrics["a"])
