"""sentence-transformers encodes texts and pictures from the folder as we do, wherever it lies."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import build_encoder, source_of
from PIL import Image, ImageOps
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny import TEXTS

from mmalign.core.errors import UserError
from mmalign.export.probes import DIRTY_TEXTS, probe_images, probe_pictures, probe_texts
from mmalign.export.router import write_router
from mmalign.export.source import Source
from mmalign.models.load import load_model

CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("resnet10t", "bert", "mean", {}),
    ("vit", "xlm-roberta", "cls", {}),
    ("open_clip", "mt5", "mean", {"text_projection": "mlp"}),
    ("resnet10t", "xlm-roberta", "last", {}),
]


def written(folder: Path, *case: Any, **changes: Any) -> Source:
    source = source_of(build_encoder(*case, **changes))
    folder.mkdir()
    write_router(source, folder)
    return source


@pytest.mark.parametrize(("image", "trunk", "pooling", "changes"), CASES)
def test_sentence_transformers_encodes_texts_and_pictures_as_we_do(
    image: str, trunk: str, pooling: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    source = written(tmp_path / "out", image, trunk, pooling, **changes)
    (tmp_path / "out").rename(tmp_path / "moved")
    model = SentenceTransformer(str(tmp_path / "moved"), device="cpu")
    assert source.encoder is not None
    texts = [*probe_texts(), *DIRTY_TEXTS]
    ours_ND = source.encoder.encode_texts(texts)
    np.testing.assert_allclose(model.encode(texts), ours_ND, atol=1e-6)

    encoded = [picture.data for picture in probe_pictures() if not picture.is_transparent]
    opened = [ImageOps.exif_transpose(Image.open(io.BytesIO(data))) for data in encoded]
    ours_BD = source.encoder.encode_images(encoded)
    np.testing.assert_allclose(model.encode(opened), ours_BD, atol=1e-6)

    scores_NB = model.similarity(model.encode(texts[:5]), model.encode(opened[:5])).numpy()
    np.testing.assert_allclose(scores_NB, ours_ND[:5] @ ours_BD[:5].T, atol=1e-5)


def test_it_is_read_back_as_the_same_encoder(tmp_path: Path) -> None:
    source = written(tmp_path / "out")
    found = load_model(str(tmp_path / "out"))
    assert source.encoder is not None and found.facts["kind"] == "sentence-transformers"
    images = probe_images()
    for ours, theirs in (
        (source.encoder.encode_texts(TEXTS), found.encode_texts(TEXTS)),
        (source.encoder.encode_images(images), found.encode_images(images)),
    ):
        np.testing.assert_allclose(theirs, ours, atol=1e-6)


def test_the_layout_is_the_one_that_the_library_itself_writes(tmp_path: Path) -> None:
    written(tmp_path / "out")
    SentenceTransformer(str(tmp_path / "out"), device="cpu").save(str(tmp_path / "theirs"))
    for name in ("router_config.json", "modules.json"):
        ours, theirs = (
            json.loads((tmp_path / place / name).read_text(encoding="utf-8"))
            for place in ("out", "theirs")
        )
        assert ours == theirs, name
    for path in (tmp_path / "theirs").rglob("*.safetensors"):
        ours, theirs = (
            load_file(tmp_path / "out" / path.relative_to(tmp_path / "theirs")),
            load_file(path),
        )
        assert ours.keys() == theirs.keys()  # no weight of theirs was drawn at random
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_same_source_gives_the_same_bytes_without_a_word_on_where(tmp_path: Path) -> None:
    written(tmp_path / "one")
    written(tmp_path / "two")
    for path in (p for p in (tmp_path / "one").rglob("*") if p.is_file()):
        twin = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == twin.read_bytes(), path.name
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_a_text_tower_alone_has_no_route_for_pictures(tmp_path: Path) -> None:
    tower = source_of(build_encoder()).tower
    with pytest.raises(UserError, match="a text tower alone; export it to sentence-transformers"):
        write_router(Source(tower=tower), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_which_the_library_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmalign.export.router.dense_layers", lambda projection: [])
    with pytest.raises(UserError, match=r"--format sentence-transformers-router: .*other vectors"):
        written(tmp_path / "out")
