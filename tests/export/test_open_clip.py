"""Both towers leave as an open_clip folder and are the same encoder there, also after a move."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from export_cases import build_encoder, files_of, source_of
from PIL import Image
from probe_cases import clean_texts, opaque_images, upright

from mmalign.core.errors import UserError
from mmalign.export.open_clip import write_open_clip
from mmalign.export.sentence_transformers import write_sentence_transformers
from mmalign.export.source import Source
from mmalign.models.encoder import Encoder
from mmalign.models.external.open_clip import load_open_clip_folder


def write(encoder: Encoder, folder: Path, home: str | None = None) -> Path:
    folder.mkdir()
    write_open_clip(source_of(encoder), folder, home or str(folder))
    return folder


@torch.inference_mode()
def difference(encoder: Encoder, loaded: tuple[Any, Any, Any]) -> float:
    """The largest difference of a component, of images and of texts."""
    model, preprocess, tokenize = loaded
    texts, encoded = clean_texts()[::2], opaque_images()
    image_BCHW = torch.stack([preprocess(one.convert("RGB")) for one in upright(encoded)])
    image_BD = model.encode_image(image_BCHW, normalize=True).numpy()
    text_ND = model.encode_text(tokenize(texts), normalize=True).numpy()
    of_images = np.abs(image_BD - encoder.encode_images(encoded)).max()
    return float(max(of_images, np.abs(text_ND - encoder.encode_texts(texts)).max()))


def load_by_name(folder: Path) -> tuple[Any, Any, Any]:
    name = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


@pytest.mark.parametrize(
    ("image", "trunk", "pooling", "projection"),
    [
        ("resnet10t", "bert", "cls", "mlp"),
        ("vit", "xlm-roberta", "mean", "mlp"),
        ("open_clip", "mt5", "mean", "linear"),
        ("around_timm", "xlm-roberta", "cls", "linear"),
        ("resnet10t", "m2m_100", "mean", "linear"),
        ("resnet10t", "bert", "mean", "none"),
    ],
)
def test_open_clip_loads_the_same_encoder_from_the_folder(
    image: str, trunk: str, pooling: str, projection: str, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"logit_bias": -10.0, "temperature": 0.1}
    changes |= {
        "text_projection": projection,
        **({"embedding": 32} if projection == "none" else {}),
    }
    encoder = build_encoder(image, trunk, pooling, **changes)
    loaded = load_by_name(write(encoder, tmp_path / "out"))
    assert difference(encoder, loaded) <= 1e-6
    assert loaded[0].logit_scale.exp().item() == pytest.approx(10)
    assert loaded[0].logit_bias.item() == -10


def test_a_large_photo_has_the_same_pixels_in_both(tmp_path: Path) -> None:
    encoder = build_encoder()
    _, preprocess, _ = load_by_name(write(encoder, tmp_path / "out"))
    pixels = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    file = io.BytesIO()  # ten times the size, so that a JPEG could be decoded smaller
    Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG")
    tower = encoder.model.image_tower
    mean_C11, std_C11 = (
        torch.tensor(x).view(3, 1, 1) for x in (tower.architecture.mean, tower.architecture.std)
    )
    ours_CHW = encoder.preprocess(file.getvalue()).permute(2, 0, 1)
    theirs_CHW = (preprocess(Image.open(file)) * std_C11 + mean_C11) * 255
    assert theirs_CHW.round().to(torch.uint8).equal(ours_CHW)


def test_a_folder_that_was_moved_loads_with_its_new_path(tmp_path: Path) -> None:
    encoder = build_encoder()
    write(encoder, tmp_path / "out").rename(tmp_path / "moved")
    with pytest.raises(Exception, match="out"):  # open_clip looks where the folder was
        load_by_name(tmp_path / "moved")
    assert difference(encoder, load_open_clip_folder(tmp_path / "moved")) <= 1e-6


def test_a_folder_for_the_hub_is_the_same_everywhere(tmp_path: Path) -> None:
    encoder = build_encoder()
    for name in ("one", "two"):
        write(encoder, tmp_path / name, home="someone/model")
    files = files_of(tmp_path / "one")
    assert files == files_of(tmp_path / "two")
    assert not [name for name, data in files.items() if str(tmp_path).encode() in data]
    config = json.loads(files["open_clip_config.json"])["model_cfg"]
    assert config["text_cfg"]["hf_model_name"] == "someone/model"
    assert config["vision_cfg"]["timm_model_name"] == "hf-hub:someone/model"
    assert difference(encoder, load_open_clip_folder(tmp_path / "one")) <= 1e-6


@pytest.mark.parametrize("trunk", ["bert", "mt5"])
def test_one_config_serves_sentence_transformers_as_well(trunk: str, tmp_path: Path) -> None:
    encoder = build_encoder(trunk=trunk)
    both, texts = write(encoder, tmp_path / "both"), tmp_path / "texts"
    texts.mkdir()
    write_sentence_transformers(source_of(encoder), texts)
    ours, theirs = (
        json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (both, texts)
    )
    assert {n for n in ours.keys() & theirs.keys() if ours[n] != theirs[n]} == set()
    (both / "config.json").write_text(json.dumps({**ours, **theirs}), encoding="utf-8")
    assert difference(encoder, load_by_name(both)) <= 1e-6


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pooling": "last"}, "open_clip has no `last`"),
        ({"trunk": "modernbert"}, "open_clip has no `modernbert`"),
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
