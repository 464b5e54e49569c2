"""Runs on a data set that grows: one that goes on keeps its order of samples, a new one sees all."""

import json
import shutil
from pathlib import Path

import pytest
from data.test_append import more_rows
from data.test_building import recipe, write_source
from run_cases import assert_equal_weights, config, losses, mmalign, newest

from mmalign.core.config import write_yaml
from mmalign.data.append import append_rows
from mmalign.data.recipe import build
from mmalign.data.shards.manifest import load_manifest
from mmalign.export.source import read_source


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set that has grown, a run from before without a stop, and one that was stopped."""
    folder = tmp_path_factory.mktemp("grown")
    write_source(folder / "one")
    build(recipe(folder / "one", max_bad_fraction=0.2), folder / "set", processes=1)
    tree = config(folder / "set" / "train")
    # Groups, windows and repeats all depend on how many shards and languages there are.
    tree["data"] |= {"groups": 2, "shuffle_shards": 1, "language_temperature": 3.0}
    (folder / "run.yaml").write_text(write_yaml(tree))
    mmalign("train", "run.yaml", "--out", "whole", folder=folder)
    mmalign("train", "run.yaml", "--out", "stopped", "--stop-after", "3", folder=folder)
    new = recipe(more_rows(folder / "two"), max_bad_fraction=0.2)
    append_rows(new, folder / "set", processes=1)
    return folder


def data_of(run: Path) -> list[str]:
    found: list[str] = json.loads((newest(run) / "MANIFEST.json").read_text())["data"]
    return found


def test_a_run_that_goes_on_is_bit_for_bit_what_it_was(grown: Path) -> None:
    shutil.copytree(grown / "stopped", grown / "resumed")
    done = mmalign("train", "run.yaml", "--out", "resumed", folder=grown)
    assert "the run goes on with its 5 shards, without those that were appended" in done.stdout
    assert losses(grown / "resumed") == losses(grown / "whole")
    assert_equal_weights(grown / "resumed", grown / "whole")
    assert data_of(grown / "resumed") == data_of(grown / "whole")
    # What it was trained on is found among what the set is now.
    (data,) = read_source(grown / "resumed").lineage["data"]
    assert data["found"] and data["samples"] == 19 and "de" not in data["languages"]


def test_another_run_that_takes_all_state_goes_on_with_the_order_too(grown: Path) -> None:
    other = ("train", "run.yaml", "resume_from=stopped", "--out", "other")
    mmalign(*other, folder=grown)
    assert_equal_weights(grown / "other", grown / "whole")
    assert data_of(grown / "other") == data_of(grown / "whole")


def test_a_new_run_sees_all(grown: Path) -> None:
    done = mmalign("train", "run.yaml", "--out", "new", "--stop-after", "1", folder=grown)
    assert "46 captions in 3 languages" in done.stdout
    assert data_of(grown / "new") == [load_manifest(grown / "set" / "train").sha256]


def test_a_set_that_was_built_again_is_refused_as_before(grown: Path) -> None:
    shutil.copytree(grown / "stopped", grown / "refused")
    shutil.copytree(grown / "set", grown / "kept")
    build(recipe(grown / "two", max_bad_fraction=0.2), grown / "set", force=True, processes=1)
    refused = mmalign("train", "run.yaml", "--out", "refused", folder=grown, expect=1)
    assert "was trained on other data than `data.train` now holds" in refused.stderr
    shutil.rmtree(grown / "set")
    (grown / "kept").rename(grown / "set")
