"""mteb's own offline tasks, run by the verb's code: its scores come back unchanged, with their counts."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_run

from mmalign.core.errors import UserError
from mmalign.evaluation.mteb_tasks import measure_tasks, run_mteb
from mmalign.models.encoder import Encoder, load_encoder
from mmalign.models.external.mteb import MtebModel
from mmalign.results.metric_names import MetricName
from mmalign.results.results import read_results

mteb = pytest.importorskip("mteb")
NAMES = ("MockSTSTask", "MockMultilingualBitextMiningTask", "MockRetrievalTask")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load_encoder(tiny_run(tmp_path_factory.mktemp("run")))


def mock(name: str) -> Any:
    grid = importlib.import_module("mteb.mocks.mock_run").ALL_MOCK_TASK_TEST_GRID
    return next(task for task in grid if task.metadata.name == name)


@pytest.mark.parametrize("name", NAMES)
def test_the_scores_are_those_of_mteb(encoder: Encoder, name: str, tmp_path: Path) -> None:
    results = measure_tasks([mock(name)], encoder)
    options: dict[str, Any] = {"cache": None, "show_progress_bar": False, "co2_tracker": False}
    done = mteb.evaluate(MtebModel(encoder), mock(name), **options).task_results[0]
    main = mock(name).metadata.main_score
    theirs = sorted(one["main_score"] for found in done.scores.values() for one in found)
    names = [n for n in map(MetricName.parse, results.metrics) if n.metric == main]
    ours = sorted(results.metrics[str(n)] for n in names if not n.is_aggregate)
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert all(results.counts[str(n)] > 0 for n in names)
    means = [results.metrics[str(n)] for n in names if n.is_aggregate]
    several = any(len(found) > 1 for found in done.scores.values())
    assert means == ([pytest.approx(sum(theirs) / len(theirs))] if several else [])
    results.write(tmp_path / "results.json")
    read = read_results(tmp_path / "results.json")
    assert read.metrics == results.metrics
    fields = read.protocol[f"mteb/{name}"]
    assert (fields["version"], fields["main"]) == (mteb.__version__, main)


def test_queries_are_counted_in_retrieval_and_languages_are_named(encoder: Encoder) -> None:
    retrieval = measure_tasks([mock("MockRetrievalTask")], encoder)
    assert set(retrieval.counts.values()) == {2}  # its queries, not its documents
    languages = {
        "MockMultilingualBitextMiningTask": {"en", "fr", "mean"},
        "MockMultilingualParallelBitextMiningTask": {"en-fr", "fr-en", "mean"},
    }
    for name, expected in languages.items():
        metrics = measure_tasks([mock(name)], encoder).metrics
        assert {MetricName.parse(metric).language for metric in metrics} == expected


def test_what_cannot_be_run_is_one_sentence(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"mteb 2\.\d+\.\d+: .*NoSuchTask"):
        run_mteb(["NoSuchTask"], encoder)
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(UserError, match=r"pip install 'mmalign\[mteb\]'"):
        run_mteb(["STSBenchmark"], encoder)
