"""Captions of several fields are drawn by their rates."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hostile_shards import tar_of
from shard_sets import make_image
from tiny import tiny_tokenizer

from mmalign.core.batch import Caption
from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.shards.index import index
from mmalign.data.shards.reader import ShardSet
from mmalign.data.shards.scan import Rules
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.loader import BatchLoader
from mmalign.data.stream.order import GlobalOrder

IMAGES = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars of others: every image has an alt text, two recaptions, and a field that is not used."""
    folder = tmp_path_factory.mktemp("set")
    members = []
    for i in range(IMAGES):
        facts: dict[str, Any] = {"alt": f"alt {i}", "recaption": ["one", "two"], "title": "no"}
        if i == 0:
            facts["alt"] = " "
        members += [(f"{i}.png", make_image(i)), (f"{i}.json", json.dumps(facts).encode())]
    (folder / "0.tar").write_bytes(tar_of(members))
    index(str(folder), Rules("json:alt,recaption", "en"))
    return folder


def drawn(data: Path, **fields: Any) -> Counter[str]:
    """How often a caption of each field is drawn in 40 epochs."""
    config = validate(DataConfig, {"train": [str(data)], **fields}, "x")
    plan = GlobalOrder([ShardSet(data)], config, seed=0)
    maker = BatchLoader(plan, config, tiny_tokenizer(), 16, None, IMAGES, 0, 1)
    unusable: list[Any] = []
    samples = (maker._sample(position, unusable) for position in range(40 * IMAGES))
    return Counter(caption.field for sample in samples for caption in sample.captions)


def test_fields_of_a_json_are_captions_with_their_field(data: Path) -> None:
    shard_set = ShardSet(data)
    recaptions = (Caption("en", "one", "recaption"), Caption("en", "two", "recaption"))
    assert shard_set.read(1).captions == (Caption("en", "alt 1", "alt"), *recaptions)
    assert shard_set.read(0).captions == recaptions


def test_fields_are_drawn_by_their_rates_whatever_their_number_of_captions(data: Path) -> None:
    total = 40 * IMAGES
    only = total // IMAGES  # the image without an alt text
    alike = drawn(data)["alt"]
    assert abs(alike - (total - only) / 3) < 120  # five standard deviations
    rated = drawn(data, captions={"alt": 3.0, "recaption": 1.0})
    assert abs(rated["alt"] - 0.75 * (total - only)) < 110
    assert rated.total() == total
    assert drawn(data, captions={"recaption": 0.2}).keys() == {"recaption"}


def test_a_field_that_no_caption_has_stops_the_run(data: Path) -> None:
    with pytest.raises(UserError, match="no caption"):
        drawn(data, captions={"alt_text": 1.0})
