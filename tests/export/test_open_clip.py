"""Both towers leave as an open_clip folder and are the same encoder there, also after a move."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from export_cases import build_encoder, source_of
from PIL import Image
from tiny import TEXTS

from mmalign.core.errors import UserError
from mmalign.data.images import decode
from mmalign.data.tokenizer import Tokenizer
from mmalign.export.open_clip import write_open_clip
from mmalign.export.sentence_transformers import write_sentence_transformers
from mmalign.export.source import Source
from mmalign.models.encoder import Encoder
from mmalign.models.external.open_clip_folder import load_open_clip_folder


def write(encoder: Encoder, folder: Path, home: str | None = None) -> None:
    folder.mkdir()
    write_open_clip(source_of(encoder), folder, home or str(folder))


def pictures(size: int, count: int = 3) -> list[bytes]:
    rng = np.random.default_rng(1)
    encoded = []
    for _ in range(count):
        pixels = rng.integers(0, 256, (size, size + 9, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        encoded.append(file.getvalue())
    return encoded


@torch.inference_mode()
def differences(encoder: Encoder, loaded: tuple[Any, Any, Any]) -> tuple[float, float]:
    """The largest difference of a component, of pictures and of texts."""
    model, preprocess, tokenize = loaded
    encoded = pictures(3 * encoder.model.image_tower.size)
    image_BCHW = torch.stack([preprocess(decode(data)) for data in encoded])
    image_BD = model.encode_image(image_BCHW, normalize=True).numpy()
    text_ND = model.encode_text(tokenize(list(TEXTS)), normalize=True).numpy()
    return (
        float(np.abs(image_BD - encoder.encode_images(encoded)).max()),
        float(np.abs(text_ND - encoder.encode_texts(TEXTS)).max()),
    )


def load_by_name(folder: Path) -> tuple[Any, Any, Any]:
    name = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


@pytest.mark.parametrize(
    ("image", "trunk", "pooling", "projection"),
    [
        ("resnet10t", "bert", "mean", "linear"),
        ("resnet10t", "bert", "cls", "mlp"),
        ("vit", "xlm-roberta", "mean", "mlp"),
        ("open_clip", "mt5", "mean", "linear"),
        ("around_timm", "xlm-roberta", "cls", "linear"),
        ("resnet10t", "m2m_100", "mean", "linear"),
    ],
)
def test_open_clip_loads_the_same_encoder_from_the_folder(
    image: str,
    trunk: str,
    pooling: str,
    projection: str,
    tmp_path: Path,
) -> None:
    encoder = build_encoder(image, trunk, pooling, text_projection=projection)
    write(encoder, tmp_path / "out")
    assert max(differences(encoder, load_by_name(tmp_path / "out"))) <= 1e-6


def test_a_large_photo_has_the_same_pixels_in_both(tmp_path: Path) -> None:
    encoder = build_encoder()
    write(encoder, tmp_path / "out")
    _, preprocess, _ = load_by_name(tmp_path / "out")
    pixels = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    file = io.BytesIO()  # ten times the size, so that a JPEG could be decoded smaller
    Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG")
    tower = encoder.model.image_tower
    mean_C11, std_C11 = (torch.tensor(x).view(3, 1, 1) for x in (tower.mean, tower.std))
    ours_CHW = encoder.preprocess(file.getvalue()).permute(2, 0, 1)
    theirs_CHW = (preprocess(Image.open(file)) * std_C11 + mean_C11) * 255
    assert theirs_CHW.round().to(torch.uint8).equal(ours_CHW)


def test_a_folder_that_was_moved_loads_with_its_new_place(tmp_path: Path) -> None:
    encoder = build_encoder()
    write(encoder, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    with pytest.raises(Exception, match="out"):  # open_clip looks where the folder stood
        load_by_name(tmp_path / "moved")
    assert max(differences(encoder, load_open_clip_folder(tmp_path / "moved"))) <= 1e-6


def test_a_folder_for_the_hub_names_nothing_of_the_machine(tmp_path: Path) -> None:
    encoder = build_encoder()
    write(encoder, tmp_path / "out", home="someone/model")
    for path in (tmp_path / "out").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert str(tmp_path) not in text and "/home/" not in text, path.name
    config = json.loads((tmp_path / "out/open_clip_config.json").read_text(encoding="utf-8"))
    assert config["model_cfg"]["text_cfg"]["hf_model_name"] == "someone/model"
    assert config["model_cfg"]["vision_cfg"]["timm_model_name"] == "hf-hub:someone/model"
    assert max(differences(encoder, load_open_clip_folder(tmp_path / "out"))) <= 1e-6


def test_temperature_and_bias_of_the_scores_come_along(tmp_path: Path) -> None:
    write(build_encoder(logit_bias=-10.0, temperature=0.1), tmp_path / "out")
    model, _, _ = load_by_name(tmp_path / "out")
    assert model.logit_scale.exp().item() == pytest.approx(10)
    assert model.logit_bias.item() == -10


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(build_encoder("open_clip"), tmp_path / name, home="someone/model")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("trunk", ["bert", "xlm-roberta", "mt5"])
def test_one_config_serves_sentence_transformers_as_well(trunk: str, tmp_path: Path) -> None:
    encoder = build_encoder(trunk=trunk)
    write(encoder, tmp_path / "both")
    (tmp_path / "texts").mkdir()
    write_sentence_transformers(source_of(encoder), tmp_path / "texts")
    ours, theirs = (
        json.loads((tmp_path / name / "config.json").read_text(encoding="utf-8"))
        for name in ("both", "texts")
    )
    assert {n for n in ours.keys() & theirs.keys() if ours[n] != theirs[n]} == set()
    merged = json.dumps({**ours, **theirs})
    (tmp_path / "both/config.json").write_text(merged, encoding="utf-8")
    assert max(differences(encoder, load_by_name(tmp_path / "both"))) <= 1e-6


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pooling": "last"}, "cannot pool the `last` token"),
        ({"trunk": "modernbert"}, "cannot hold a text tower of type `modernbert`"),
    ],
)
def test_what_open_clip_cannot_express_is_refused(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        write(build_encoder(**changes), tmp_path / "out")


def test_a_text_tower_alone_is_refused(tmp_path: Path) -> None:
    alone = Source(tower=source_of(build_encoder()).tower)
    with pytest.raises(UserError, match="--format open_clip: holds an image tower and a text"):
        write_open_clip(alone, tmp_path, "someone/model")


def test_what_open_clip_computes_otherwise_is_found_and_refused(tmp_path: Path) -> None:
    encoder = build_encoder()
    inner = copy.deepcopy(encoder.tokenizer.inner)
    inner.pad_token = "</s>"  # open_clip would hide the end of every text together with the padding
    encoder.tokenizer = Tokenizer(inner)
    encoder.model.text_tower.trunk.config.pad_token_id = inner.pad_token_id
    with pytest.raises(UserError, match=r"model\.text: open_clip .* computes other vectors"):
        write(encoder, tmp_path / "out")
