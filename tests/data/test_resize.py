"""Images are made smaller by a build: aspect, formats, and what stays as it is."""

import io
from pathlib import Path

import pytest
from PIL import Image
from shard_sets import make_image

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.data.images import decode
from mmalign.data.recipe import build
from mmalign.data.recipe_config import RecipeConfig
from mmalign.data.resize import Resize, resize
from mmalign.data.shards.reader import ShardSet


def encoded(size: tuple[int, int], image_format: str = "PNG") -> bytes:
    image = Image.radial_gradient("L").resize(size).convert("RGB")
    data = io.BytesIO()
    image.save(data, image_format)
    return data.getvalue()


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        ((400, 200), {"shortest": 100}, (200, 100)),
        ((200, 400), {"shortest": 100}, (100, 200)),
        ((400, 200), {"longest": 100}, (100, 50)),
        ((4000, 20), {"longest": 16}, (16, 1)),
        ((301, 200), {"shortest": 100}, (150, 100)),
    ],
)
def test_the_aspect_is_kept(
    size: tuple[int, int], limit: dict[str, int], expected: tuple[int, int]
) -> None:
    data = encoded(size)
    smaller = resize(decode(data), data, validate(Resize, limit, "x"))
    image = Image.open(io.BytesIO(smaller))
    assert (image.format, image.size) == ("JPEG", expected)


def test_an_image_that_is_small_stays_byte_for_byte() -> None:
    data = encoded((100, 300), "WEBP")
    assert resize(decode(data), data, Resize(shortest=100)) == data


def test_a_limit_has_one_side() -> None:
    for tree in ({}, {"shortest": 20, "longest": 20}):
        with pytest.raises(UserError, match="give either `shortest` or `longest`"):
            validate(Resize, tree, "x.yaml")


def test_a_build_resizes_and_one_without_it_has_the_recipe_of_before(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "large.png").write_bytes(encoded((300, 200)))
    (source / "small.png").write_bytes(make_image(1))
    (source / "t.csv").write_text("image,lang,text\nlarge.png,en,a ring\nsmall.png,en,a square\n")
    tree = {
        "name": "s",
        "source": {
            "kind": "table",
            "folders": [str(source)],
            "files": ["t.csv"],
            "captions": {"text": "text", "language": "lang"},
        },
    }
    plain = build(validate(RecipeConfig, tree, "x"), tmp_path / "plain", processes=1)
    assert "resize" not in plain[0].recipe
    resized = {**tree, "resize": {"shortest": 100}}
    (manifest,) = build(validate(RecipeConfig, resized, "x"), tmp_path / "small", processes=2)
    assert manifest.recipe["resize"] == {"shortest": 100, "longest": None, "quality": 90}
    shard_set = ShardSet(tmp_path / "small" / "train")
    images = [shard_set.read(i).image for i in range(2)]
    assert decode(images[0]).size == (150, 100)
    assert images[1] == make_image(1)
