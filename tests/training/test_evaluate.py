"""Evaluation during training: what is checked at the start, and what is best after a resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_cases import config, measured, mmalign, newest
from shard_sets import make_set, open_descriptors

from mmalign.core.batch import StreamState
from mmalign.core.config import write_yaml
from mmalign.core.errors import UserError
from mmalign.core.record import Recorder, read_records
from mmalign.data.shards.reader import ShardSet
from mmalign.training import evaluate
from mmalign.training.checkpoint import TrainState
from mmalign.training.evaluate import EvaluationConfig

HARD = "retrieval/{}/mean/text_to_image/recall@1"
EASY = "retrieval/{}/mean/text_to_image/recall@20"  # of 14 images: 1 at every step


def write_suite(folder: Path, name: str, **changes: Any) -> str:
    """The path of a suite on one set, both of this name."""
    sets = [{"name": name, "shards": str(folder / "data"), "measures": ["retrieval"]}]
    tree = {"name": name, "sets": sets, "recall_at": [1, 20], **changes}
    (folder / f"{name}.yaml").write_text(write_yaml(tree))
    return str(folder / f"{name}.yaml")


@pytest.fixture(scope="module")
def suites(folder: Path) -> Path:
    """The folder with two suites, and a run that chose by `EASY` and stopped after its step 4."""
    easy = {"suite": write_suite(folder, "seen"), "every": 2, "best": EASY.format("seen")}
    write_suite(folder, "other")
    tree = config(folder / "data", evaluation=easy, checkpoint={"every": 1, "keep": 2})
    (folder / "easy.yaml").write_text(write_yaml(tree))
    mmalign("train", "easy.yaml", "--out", "easy", "--stop-after", "4", folder=folder)
    assert best_step(folder / "easy") == 2
    return folder


def best_step(run: Path) -> int:
    return int((run / "checkpoints" / "best").resolve().name.removeprefix("step-"))


def first_best(run: Path, metric: str, after: int) -> int:
    values = {step: value for step, value in measured(run, metric) if step >= after}
    return max(values, key=lambda step: (values[step], -step))


def test_a_resume_with_another_suite_measures_that_one(suites: Path) -> None:
    run = shutil.copytree(suites / "easy", suites / "another_suite", symlinks=True)
    changes = [
        f"evaluation.suite={suites / 'other.yaml'}",
        f"evaluation.best={HARD.format('other')}",
    ]
    mmalign("train", "easy.yaml", *changes, "--out", run.name, folder=suites)
    assert [step for step, _ in measured(run, EASY.format("seen"))] == [2, 4]
    assert [step for step, _ in measured(run, HARD.format("other"))] == [4, 6]
    suite_of = [r["suite"] for r in read_records(run / "metrics.jsonl") if "suite" in r]
    assert suite_of == ["seen", "seen", "other", "other"]
    assert best_step(run) == first_best(run, HARD.format("other"), after=4)


def test_a_resume_with_another_metric_chooses_by_that_one(suites: Path) -> None:
    run = shutil.copytree(suites / "easy", suites / "another_metric", symlinks=True)
    metric = HARD.format("seen")
    mmalign("train", "easy.yaml", f"evaluation.best={metric}", "--out", run.name, folder=suites)
    assert [step for step, _ in measured(run, metric)] == [2, 4, 6]  # the record of step 4 is used
    assert best_step(run) == first_best(run, metric, after=4)
    state = json.loads((newest(run) / "state.json").read_text())
    assert state["best_of"] == {"suite": "seen", "metric": metric} or best_step(run) == 6


def test_a_run_that_goes_on_from_another_one_has_a_best_checkpoint_of_its_own(suites: Path) -> None:
    change = f"resume_from={suites / 'easy'}"
    mmalign("train", "easy.yaml", change, "--out", "own_best", folder=suites)
    assert best_step(suites / "own_best") == 6


def test_a_step_without_a_loss_is_measured_after_a_kill(suites: Path) -> None:
    run = shutil.copytree(suites / "easy", suites / "without_loss", symlinks=True)
    records = read_records(run / "metrics.jsonl")
    assert EASY.format("seen") in records.pop()  # as if killed after the save of step 4
    assert records[-1]["step"] == 4
    del records[-1]["loss"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    mmalign("train", "easy.yaml", "--out", run.name, folder=suites)
    assert [step for step, _ in measured(run, EASY.format("seen"))] == [2, 4, 6]


def test_an_evaluation_is_found_by_its_suite_and_its_metric(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    for step in (1, 2, 3, 4):
        recorder.write(step, {"loss": float("nan"), "captions_seen": 8})
    recorder.write(2, {"retrieval/x": 0.5}, "first")
    recorder.write(3, {"retrieval/x": float("nan"), "retrieval/y": 0.25}, "first")
    recorder.write(4, {"retrieval/x": 0.75})  # of an older version
    recorder.close()

    def found(step: int, suite: str = "first", best: str | None = "retrieval/x") -> Any:
        return evaluate.recorded_evaluation(tmp_path, step, suite, best)

    assert found(1) is None
    assert found(1, best=None) is None
    assert found(2) == found(2, best=None) == {"retrieval/x": 0.5}
    assert found(2, suite="second") is None
    assert found(2, best="retrieval/y") is None
    assert found(3) is None
    assert found(3, best=None) == {"retrieval/y": 0.25}
    assert found(4) == found(4, best=None) == {"retrieval/x": 0.75}
    assert found(4, best="retrieval/y") is None


def test_values_of_one_metric_of_one_suite_are_compared() -> None:
    start = TrainState(0, 0, 0, StreamState(0, 0))
    first = evaluate.with_best(start, {"x": 0.5, "y": 0.1}, "seen", "x")
    assert first is not None
    assert (first.best, first.best_of) == (0.5, {"suite": "seen", "metric": "x"})
    assert TrainState.from_json(json.loads(json.dumps(first.to_json()))) == first
    assert evaluate.with_best(first, {"x": 0.5}, "seen", "x") is None
    assert evaluate.with_best(first, {"x": 0.1}, "seen", "x") is None
    assert evaluate.with_best(start, {"x": float("nan")}, "seen", "x") is None
    for suite, best in (("seen", "y"), ("other", "x")):
        other = evaluate.with_best(first, {"x": 0.1, "y": 0.1}, suite, best)
        assert other is not None
        assert other.best == 0.1
    # A checkpoint of an older version does not say what its value is of.
    tree = first.to_json()
    del tree["best_of"]
    old = TrainState.from_json(tree)
    assert evaluate.with_best(old, {"x": 0.4}, "seen", "x") is None
    newer = evaluate.with_best(old, {"x": 0.6}, "seen", "x")
    assert newer is not None
    assert newer.best_of == first.best_of
    with pytest.raises(UserError, match="no metric `z`; similar names: "):
        evaluate.with_best(first, {"x": 0.5}, "seen", "z")


def test_a_run_does_not_start_without_the_data_of_its_evaluation(suites: Path) -> None:
    sets = [{"name": "gone", "shards": "nowhere"}]
    change = f"evaluation.suite={write_suite(suites, 'gone', sets=sets)}"
    refused = mmalign("train", "easy.yaml", change, "--out", "gone", expect=1, folder=suites)
    where = f"{suites / 'gone.yaml'}: `sets.0.shards`: nowhere: no such data set"
    assert refused.stderr.count("\n") == 1
    assert where in refused.stderr
    assert not (suites / "gone").exists()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a data set in three languages."""
    make_set(tmp_path / "data", 6)
    return tmp_path


def opened(folder: Path, best: str | None = None, **changes: Any) -> None:
    suite = write_suite(folder, "seen", **changes)
    evaluate.open_suite(EvaluationConfig(suite=suite, every=1, best=best), width=16)


def test_the_check_reads_no_sample_and_leaves_no_file_open(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a sample or an index was read")

    for name in ("read", "keys", "languages", "picture_ids"):
        monkeypatch.setattr(ShardSet, name, refuse)
    before = open_descriptors()
    opened(data)
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dims": [8, 17]}, "`dims` is 17, but the model's vectors have 16 dimensions; lower it"),
        (
            {"sets": [{"name": "x", "shards": "no"}]},
            "`sets.0.shards`: no: no such data set; make it",
        ),
        ({"zero_shot": [{"name": "z", "shards": "no"}]}, "`zero_shot.0.shards`: no: no such data"),
        ({"words": [{"name": "w", "folder": "no"}]}, "`words.0.folder`: no: no such folder; name"),
        (
            {"probe": [{"name": "p", "train": ".", "test": "no"}]},
            "`probe.0.test`: no: no such folder; name",
        ),
    ],
)
def test_what_a_suite_needs_is_checked(data: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        opened(data, **changes)
    assert f"{data / 'seen.yaml'}: {problem}" in str(caught.value)


def test_words_of_every_layer_are_refused_where_a_call_needs_all_ranks(data: Path) -> None:
    suite = write_suite(data, "seen", lexical=[{"name": "l", "folder": "."}])
    config = EvaluationConfig(suite=suite, every=1)
    with pytest.raises(
        UserError, match=r"`lexical` cannot be measured under `engine.zero_stage` 3"
    ):
        evaluate.open_suite(config, 16, zero_stage=3)


def test_a_language_that_a_set_lacks_is_refused(data: Path) -> None:
    sets = [{"name": "seen", "shards": str(data / "data"), "languages": ["en", "fr"]}]
    with pytest.raises(UserError, match=r"`sets\.0\.languages`: set `seen`: language `fr` is"):
        opened(data, sets=sets)


RICH: dict[str, Any] = {
    "dims": [8],
    "zero_shot": [{"name": "z", "images": ".", "class_names": "openai"}],
    "probe": [{"name": "p", "train": ".", "test": "."}],
    "words": [{"name": "w", "folder": "."}],
    "lexical": [{"name": "l", "folder": "."}],
    "layers": {"sets": ["seen"]},
}


def rich(folder: Path) -> dict[str, Any]:
    both = ["all-captions", "first-caption"]
    measures = ["retrieval", "alignment", "geometry"]
    shards = str(folder / "data")
    one = {"name": "seen", "shards": shards, "measures": measures, "protocols": both}
    return {**RICH, "sets": [one]}


@pytest.mark.parametrize(
    "best",
    [
        "retrieval/seen/mean/text_to_image/recall@1",
        "retrieval/seen/sw/image_to_text/recall@20",
        "retrieval/seen/family:Bantu/image_to_text/recall@20",
        "retrieval/seen@first-caption/all/text_to_image/recall@1",
        "retrieval/seen@8-dims@first-caption/mean/text_to_image/recall@1",
        "alignment/seen/mean/bitext@1",
        "geometry/seen/mean/isotropy",
        "layers/seen/2/mean/bitext@1",
        "words/w/mean/translation@1",
        "lexical/l/mean/2/held_out/precision@1",
        "zero_shot/z/mean/accuracy@5",
        "probe/p/linear/accuracy",
    ],
)
def test_a_metric_that_the_suite_may_have_can_be_the_best(data: Path, best: str) -> None:
    opened(data, best, **rich(data))


@pytest.mark.parametrize(
    "best",
    [
        "recall@1",
        "retrieval/seen/recall@1",
        "retrieval/sen/mean/text_to_image/recall@1",
        "retrival/seen/mean/text_to_image/recall@1",
        "retrieval/seen/maen/text_to_image/recall@1",
        "retrieval/seen/mean/text_to_images/recall@1",
        "retrieval/seen/mean/text_to_image/recall@3",
        "retrieval/seen@9-dims/mean/text_to_image/recall@1",
        "alignment/seen/en-sw/bitext@1",  # of single pairs nothing is recorded
        "zero_shot/seen/mean/accuracy@5",
    ],
)
def test_a_misspelt_best_is_refused_at_the_start(data: Path, best: str) -> None:
    with pytest.raises(UserError) as caught:
        opened(data, best, **rich(data))
    problem = f"evaluation.best: {data / 'seen.yaml'}: the suite has no metric `{best}`; similar"
    assert problem in str(caught.value)
