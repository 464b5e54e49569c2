"""An external model's vectors are those of its own library; everything is built here, without the hub."""

import copy
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from shard_sets import make_image
from tiny import TEXTS, tiny_run, tiny_tokenizer
from torch import Tensor

from mmalign.core.errors import UserError
from mmalign.export.open_clip import write_open_clip
from mmalign.export.sentence_transformers import write_sentence_transformers
from mmalign.export.source import Source
from mmalign.models.encoder import load_encoder
from mmalign.models.load import detect_format, load_model, load_text_encoder
from mmalign.models.text_encoder import text_side

LONG = (*TEXTS, " ".join(TEXTS) * 3, "a")  # one is cut
IMAGES = [make_image(n, size=40) for n in range(5)]
WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
VISION = {**WIDTHS, "num_hidden_layers": 1, "image_size": 32, "patch_size": 16}
TEXT = {**WIDTHS, "num_hidden_layers": 1, "vocab_size": 160, "max_position_embeddings": 24}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@dataclass
class Library:
    """A model's folder, and what its own library makes of texts and images, before scaling."""

    folder: Path
    texts: Callable[[list[str]], Tensor]
    images: Callable[[list[Image.Image]], Tensor] | None


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.set_num_threads(1)


def make_open_clip(folder: Path) -> Library:
    torch.manual_seed(0)
    size = {"layers": 1, "width": 32}
    vision = {"image_size": 32, "head_width": 16, "patch_size": 16, **size}
    text = {"context_length": 20, "vocab_size": 49408, "heads": 2, **size}
    settings = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    model = open_clip.CLIP(**settings).eval()
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "resize_mode": "squash"}
    tree = {"model_cfg": settings, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(tree), encoding="utf-8")
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    return Library(
        folder,
        lambda texts: model.eval().encode_text(tokenize(texts)),
        lambda images: model.eval().encode_image(torch.stack([transform(i) for i in images])),
    )


def save_with_processor(
    model: Any, image_processor: Any, processor: Any, folder: Path, longest: int | None = None
) -> None:
    model.eval().save_pretrained(str(folder))
    # A copy: a processor writes its name into it; and other tests left their cut of texts in the original.
    tokenizer = copy.deepcopy(tiny_tokenizer().inner)
    tokenizer.backend_tokenizer.no_truncation()
    if longest is not None:
        tokenizer.model_max_length = longest
    processor(image_processor, tokenizer).save_pretrained(str(folder))


def make_clip(folder: Path) -> Library:
    torch.manual_seed(0)
    settings = transformers.CLIPConfig(
        text_config={**TEXT, **SPECIAL}, vision_config=VISION, projection_dim=16
    )
    image_processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    model = transformers.CLIPModel(settings)
    # sentence-transformers knows no other limit than the tokenizer's.
    save_with_processor(model, image_processor, transformers.CLIPProcessor, folder, longest=24)
    return of_transformers(folder, padding=True, max_length=24)


def make_siglip(folder: Path) -> Library:
    torch.manual_seed(0)
    settings = transformers.SiglipConfig(text_config={**TEXT, **SPECIAL}, vision_config=VISION)
    image_processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    save_with_processor(
        transformers.SiglipModel(settings), image_processor, transformers.SiglipProcessor, folder
    )
    return of_transformers(folder, padding="max_length", max_length=24)


def make_joined(folder: Path) -> Library:
    """XLM-R's positions begin behind the padding token: one of its 25 rows is no token's."""
    torch.manual_seed(0)
    settings = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.CLIPVisionConfig(**VISION),
        transformers.XLMRobertaConfig(
            **{**TEXT, "max_position_embeddings": 25, "pad_token_id": 0, "type_vocab_size": 1}
        ),
        projection_dim=16,
    )
    image_processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    model = transformers.VisionTextDualEncoderModel(settings)
    save_with_processor(model, image_processor, transformers.VisionTextDualEncoderProcessor, folder)
    return of_transformers(folder, padding=True, max_length=24)


def of_transformers(folder: Path, **padding: Any) -> Library:
    model = transformers.AutoModel.from_pretrained(str(folder)).eval()
    processor = transformers.AutoProcessor.from_pretrained(str(folder))

    def texts(batch: list[str]) -> Tensor:
        inputs = processor(text=batch, truncation=True, return_tensors="pt", **padding)
        return model.get_text_features(**inputs).pooler_output

    def images(batch: list[Image.Image]) -> Tensor:
        inputs = processor(images=batch, return_tensors="pt")
        return model.get_image_features(**inputs).pooler_output

    return Library(folder, texts, images)


def make_sentence_transformers(folder: Path) -> Library:
    (folder / "clip").mkdir()
    make_clip(folder / "clip")
    SentenceTransformer(str(folder / "clip"), device="cpu").save(str(folder / "saved"))
    model = SentenceTransformer(str(folder / "saved"), device="cpu")
    encode = lambda batch: model.encode(batch, convert_to_tensor=True)  # noqa: E731
    return Library(folder / "saved", encode, encode)


def make_export(folder: Path) -> Library:
    encoder = load_encoder(tiny_run(folder / "run"))
    (folder / "export").mkdir()
    write_sentence_transformers(Source(tower=text_side(encoder)), folder / "export")
    return Library(folder / "export", lambda t: torch.from_numpy(encoder.encode_texts(t)), None)


def make_bert(folder: Path) -> Library:
    torch.manual_seed(0)
    transformers.BertModel(
        transformers.BertConfig(**{**TEXT, "max_position_embeddings": 128})
    ).save_pretrained(str(folder))
    tiny_tokenizer().inner.save_pretrained(str(folder))
    tower = load_text_encoder(str(folder))
    return Library(folder, lambda t: torch.from_numpy(tower.encode(t)), None)


MAKERS = {
    "open_clip": make_open_clip,
    "clip": make_clip,
    "siglip": make_siglip,
    "joined": make_joined,
    "sentence_transformers": make_sentence_transformers,
    "export": make_export,
    "bert": make_bert,
}
DUAL = ("open_clip", "clip", "siglip", "joined", "sentence_transformers")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Library]:
    made: dict[str, Library] = {}

    def library(name: str) -> Library:
        if name not in made:
            made[name] = MAKERS[name](tmp_path_factory.mktemp(name))
        return made[name]

    return library


def unit(rows: Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(rows.detach().float(), dim=-1).numpy()


@pytest.mark.parametrize("name", MAKERS)
def test_texts_are_those_of_the_library(libraries: Callable[[str], Library], name: str) -> None:
    library = libraries(name)
    texts = list(LONG)
    with torch.no_grad():
        expected = unit(library.texts(texts))
    model = load_model(str(library.folder))
    found = model.encode_texts(texts, batch_size=3)
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-5  # the model does look at its input
    assert model.encode_texts([]).shape == (0, expected.shape[1])
    facts = model.facts
    assert (
        facts["path"] == str(library.folder) and facts["step"] == 0 and len(facts["sha256"]) == 64
    )
    assert facts["kind"] in ("open_clip", "transformers", "sentence-transformers", "tower")


@pytest.mark.parametrize("name", DUAL)
def test_images_are_those_of_the_library(libraries: Callable[[str], Library], name: str) -> None:
    library = libraries(name)
    assert library.images is not None
    opened = [Image.open(io.BytesIO(image)).convert("RGB") for image in IMAGES]
    with torch.no_grad():
        expected = unit(library.images(opened))
    model = load_model(str(library.folder))
    found = model.encode_images(iter(IMAGES), batch_size=2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-5
    assert model.encode_images([]).shape == (0, expected.shape[1])
    odd = model.encode_images(odd_images())
    assert odd.shape[0] == 7 and np.isfinite(odd).all()
    with pytest.raises(UserError):
        model.encode_images([b"no image"])


def odd_images() -> list[bytes]:
    """Images of other modes than RGB, tiny ones, and one that lies on its side."""
    encoded = []
    for mode, kind in (("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG"), ("CMYK", "JPEG")):
        file = io.BytesIO()
        Image.new(mode, (33, 21), 1).save(file, kind)
        encoded.append(file.getvalue())
    file = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 3), "red").save(file, "JPEG", exif=turned)
    return [*encoded, file.getvalue(), make_image(1, size=1)]


@pytest.mark.parametrize("name", ["export", "bert"])
def test_a_text_encoder_takes_no_images(libraries: Callable[[str], Library], name: str) -> None:
    model = load_model(str(libraries(name).folder))
    with pytest.raises(UserError, match="without an image tower; measure it with `measures:"):
        model.encode_images(IMAGES)


def test_a_moved_open_clip_export_is_found_by_folder_and_by_prefix(tmp_path: Path) -> None:
    encoder = load_encoder(tiny_run(tmp_path / "run"))
    home = tmp_path / "export"
    home.mkdir()
    write_open_clip(Source(text_side(encoder), encoder), home, home=str(home))
    home.rename(tmp_path / "moved")
    for prefix in ("", "local-dir:", "open_clip:"):
        found = load_model(f"{prefix}{tmp_path / 'moved'}")
        np.testing.assert_allclose(
            found.encode_texts(TEXTS), encoder.encode_texts(TEXTS), atol=1e-6
        )
        np.testing.assert_allclose(
            found.encode_images(IMAGES), encoder.encode_images(IMAGES), atol=1e-6
        )


def test_a_prefix_chooses_among_the_libraries_of_one_folder(
    libraries: Callable[[str], Library],
) -> None:
    folder = libraries("export").folder
    whole = load_model(f"sentence-transformers:{folder}").encode_texts(TEXTS)
    trunk = load_model(f"transformers:{folder}").encode_texts(TEXTS)
    assert whole.shape == (6, 16) and trunk.shape == (6, 32)  # AutoModel knows no projection
    assert [
        detect_format(f"{prefix}:{folder}") for prefix in ("transformers", "onnx", "onnx-int8")
    ] == [*("transformers", "onnx", "onnx-int8")]


def test_open_clips_own_name_for_a_folder_is_taken(libraries: Callable[[str], Library]) -> None:
    folder = libraries("open_clip").folder
    found = load_model(f"local-dir:{folder}").encode_texts(TEXTS)
    np.testing.assert_array_equal(found, load_model(str(folder)).encode_texts(TEXTS))


def test_a_dual_encoder_without_its_processor_is_named(tmp_path: Path) -> None:
    make_clip(tmp_path)
    for file in (*tmp_path.glob("*processor*"), *tmp_path.glob("token*")):
        file.unlink()
    with pytest.raises(UserError, match=r"processor|cannot load it"):
        load_model(str(tmp_path))
