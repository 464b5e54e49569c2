"""Zero-shot accuracy on vectors whose answer is known by hand, and the files it reads."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.rank_cases import make_encoder
from PIL import Image
from ranks import run_ranks
from shard_sets import make_image, write_set
from tiny import tiny_run

from mmalign.core import distributed
from mmalign.core.batch import Caption, Pair
from mmalign.core.config import read_yaml, validate
from mmalign.core.errors import UserError
from mmalign.evaluation.class_names import read_names, read_prompts, read_templates
from mmalign.evaluation.zero_shot import ZeroShotConfig, embed_names, measure_zero_shot
from mmalign.results.protocol import sentence
from mmalign.results.results import Results

ROOT = Path(__file__).parents[2]
TENCH, GOLDFISH = "n01440764", "n01443537"  # classes 0 and 1 of ImageNet-1k


class FakeModel:
    """An image's vector is its top left pixel; a text's vector is looked up."""

    def __init__(self, vectors: dict[str, Sequence[float]]) -> None:
        self.facts = {"path": "fake", "sha256": "0", "step": 0}
        self.vectors = vectors
        self.images_seen = 0
        self.texts: list[str] = []

    def encode_images(self, images: Iterable[bytes], batch_size: int = 4) -> np.ndarray:
        pixels = [Image.open(io.BytesIO(image)).getpixel((0, 0)) for image in images]
        self.images_seen += len(pixels)
        return unit(pixels)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 4) -> np.ndarray:
        self.texts += texts
        return unit([self.vectors[text] for text in texts])


def unit(rows: Any) -> np.ndarray:
    rows_ND = np.array(rows, np.float32)
    return rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)


def make_png(*pixel: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (2, 2), pixel).save(encoded, "PNG")
    return encoded.getvalue()


def write_images(folder: Path, images: dict[str, list[tuple[int, int, int]]]) -> str:
    for one, pixels in images.items():
        (folder / one).mkdir(parents=True)
        for number, pixel in enumerate(pixels):
            (folder / one / f"{number}.PNG").write_bytes(make_png(*pixel))
        (folder / one / "notes.txt").write_text("no image")
    return str(folder)


def write_names(folder: Path, names: dict[str, dict[str, str]]) -> str:
    folder.mkdir()
    for lang, of_lang in names.items():
        (folder / f"{lang}.json").write_text(json.dumps(of_lang), encoding="utf-8")
    return str(folder)


def measured(model: Any, **tree: Any) -> Results:
    results = Results(suite="x", model={})
    tree = {"name": "s", **tree}
    measure_zero_shot(model, validate(ZeroShotConfig, tree, "x.yaml"), results)
    return results


def numbers(results: Results) -> dict[str, float]:
    return {name.removeprefix("zero_shot/s/"): value for name, value in results.metrics.items()}


# Scores of the images by (cat, dog, cow) in English, where each class has an axis of its own.
IMAGES = {
    "cat": [(9, 1, 2), (5, 6, 1)],  # first; second behind dog
    "cow": [(4, 5, 1)],  # third
    "dog": [(1, 9, 2), (2, 9, 1), (5, 5, 0)],  # first; first; a tie with cat
}
NAMES = {
    "en": {"cat": "cat", "cow": "cow", "dog": "dog"},
    "de": {"cat": "Katze", "dog": "Hund"},  # no cow
    "xx": {"cat": "miau"},  # nothing to choose from
}
VECTORS = {
    "cat": (1, 0, 0),
    "dog": (0, 1, 0),
    "cow": (0, 0, 1),
    "Katze": (0, 1, 0),
    "Hund": (1, 0, 0),
}


@pytest.fixture
def animals(tmp_path: Path) -> dict[str, str]:
    return {
        "images": write_images(tmp_path / "images", IMAGES),
        "class_names": write_names(tmp_path / "names", NAMES),
    }


def test_accuracies_by_hand_with_ties_and_missing_classes(animals: dict[str, str]) -> None:
    model = FakeModel(VECTORS)
    results = measured(model, **animals, accuracy_at=[1, 2])
    assert numbers(results) == pytest.approx(
        {
            "en/accuracy@1": 3 / 6,  # the tie counts against the model
            "en/accuracy@2": 5 / 6,
            # The German names are swapped; only cats and dogs are asked for: 5 images, 2 names.
            "de/accuracy@1": 1 / 5,
            "de/accuracy@2": 1.0,
            "mean/accuracy@1": (3 / 6 + 1 / 5) / 2,
            "mean/accuracy@2": (5 / 6 + 1.0) / 2,
        }
    )
    prefix = "zero_shot/s"
    assert results.counts[f"{prefix}/en/accuracy@1"] == 6
    assert results.counts[f"{prefix}/de/accuracy@1"] == 5
    assert results.chance[f"{prefix}/en/accuracy@2"] == pytest.approx(2 / 3)
    assert results.chance[f"{prefix}/de/accuracy@1"] == 1 / 2
    low, high = results.ci95[f"{prefix}/mean/accuracy@1"]
    assert 0 <= low < results.metrics[f"{prefix}/mean/accuracy@1"] < high <= 1
    # Image 2 is the cow, which has no German name.
    assert results.ids[f"{prefix}/en"].tolist() == [0, 1, 2, 3, 4, 5]
    assert results.ids[f"{prefix}/de"].tolist() == [0, 1, 3, 4, 5]
    assert len(results.data["s"]) == 64
    assert "prompts: label;" in sentence(results.protocol[prefix])
    assert "names: de 2, en 3" in sentence(results.protocol[prefix])


def test_what_is_left_out_is_counted_and_chance_is_that_of_all_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty class, one that was never unpacked, other formats, images that lie in no class."""
    folder = Path(write_images(tmp_path / "p", {"a": [(9, 1, 0)], "b": [(1, 9, 0)]}))
    for one in ("empty", "gifs", "a/deeper"):
        (folder / one).mkdir()
    (folder / "a" / "notes.txt").unlink()
    (folder / "gifs" / "1.gif").write_bytes(b"GIF89a")
    (folder / "gifs" / "2.BMP").write_bytes(b"BM")
    for stray in ("x.png", "a/deeper/y.JPG"):
        (folder / stray).write_bytes(make_png(1, 1, 1))
    classes = {one: one for one in ("a", "b", "empty", "gifs", "never")}
    model = FakeModel({one: np.eye(5, 3)[i] + 0.01 for i, one in enumerate(classes)})
    results = measured(
        model, images=str(folder), class_names=write_names(tmp_path / "n", {"en": classes})
    )
    assert results.chance["zero_shot/s/en/accuracy@1"] == 1 / 5
    assert results.counts["zero_shot/s/en/accuracy@1"] == 2
    said = capsys.readouterr().out
    for words in (
        "classes without images: 3 (empty, gifs, never)",
        "images that lie in no subfolder of a class: 2",
        "files of other formats: 3 (.BMP, .gif, .txt)",
    ):
        assert words in sentence(results.protocol["zero_shot/s"])
        assert f"zero-shot set `s`: {words}\n" in said


def test_a_misspelt_subfolder_is_refused(animals: dict[str, str]) -> None:
    folder = Path(animals["images"])
    (folder / "cat").rename(folder / "catt")
    with pytest.raises(UserError, match=r"a subfolder `catt`, which is no class .* mean `cat`\?"):
        measured(FakeModel(VECTORS), **animals)


def test_languages_are_one_in_any_spelling(animals: dict[str, str], tmp_path: Path) -> None:
    names = Path(animals["class_names"])
    (names / "de.json").rename(names / "DE_de.json")
    (names / "de-DE.json").write_text(json.dumps({"cow": "Kuh"}))
    (tmp_path / "prompts").mkdir()
    tree = {"lang": "de_DE", "templates": ["{}!"], "source": "test"}
    (tmp_path / "prompts" / "de_de.json").write_text(json.dumps({**tree, "lang": "de-de"}))
    vectors = {f"{name}!": (1, 0, 0) for name in ("Katze", "Hund", "Kuh")} | VECTORS
    results = measured(
        FakeModel(vectors),
        **animals,
        languages=["de_DE", "en"],
        prompts=str(tmp_path / "prompts"),
    )
    assert results.counts["zero_shot/s/de-DE/accuracy@1"] == 6
    assert "names: de-DE 3, en 3" in sentence(results.protocol["zero_shot/s"])


def test_images_are_encoded_once_and_only_if_a_language_names_them(animals: dict[str, str]) -> None:
    model = FakeModel(VECTORS)
    measured(model, **animals)
    assert model.images_seen == 6
    assert sorted(model.texts) == ["Hund", "Katze", "cat", "cow", "dog"]
    german = FakeModel(VECTORS)
    measured(german, **animals, languages=["de"])
    assert german.images_seen == 5


def test_a_collapsed_model_scores_zero(animals: dict[str, str]) -> None:
    results = measured(FakeModel(dict.fromkeys(VECTORS, (1, 1, 1))), **animals, accuracy_at=[1])
    assert set(results.metrics.values()) == {0.0}


def test_equal_names_are_one_class(tmp_path: Path) -> None:
    """No model can tell a crane from a crane, so crane is right for both."""
    one, two, other = (9, 1, 1), (8, 1, 1), (1, 9, 1)
    images = write_images(tmp_path / "p", {"bird": [one], "machine": [two], "dog": [other, one]})
    english = {"bird": "crane", "machine": "crane", "dog": "dog"}
    names = write_names(tmp_path / "n", {"en": english})
    vectors = {"crane": (1, 0, 0), "dog": (0, 1, 0)}
    results = measured(FakeModel(vectors), images=images, class_names=names, accuracy_at=[1])
    assert numbers(results)["en/accuracy@1"] == 3 / 4
    assert results.chance["zero_shot/s/en/accuracy@1"] == 1 / 2


def test_templates_are_averaged_as_unit_vectors(tmp_path: Path) -> None:
    """The mean of unit vectors is (1, 1) for class a; the mean of raw ones would be near (0, 1)."""
    vectors = {"an a": (1, 0, 0), "the a": (0, 100, 0), "an b": (0, 4, 3), "the b": (0, 4, 3)}
    images = write_images(tmp_path / "p", {"a": [(10, 10, 0)], "b": [(0, 10, 9)]})
    names = write_names(tmp_path / "n", {"en": {"a": "a", "b": "b"}})
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    tree = {"lang": "en", "templates": ["an {}", "the {}"], "source": "test"}
    (prompts / "en.json").write_text(json.dumps(tree))
    model = FakeModel(vectors)
    results = measured(model, images=images, class_names=names, prompts=str(prompts))
    # By hand: image a scores a 1.0 and b 0.57; against (0, 1) it would score 0.71, and b still less.
    assert numbers(results)["mean/accuracy@1"] == 1.0
    class_CD = embed_names(model, ["a", "b"], read_prompts(prompts / "en.json"))
    by_hand = [(0.5**0.5, 0.5**0.5, 0), (0, 0.8, 0.6)]
    assert class_CD == pytest.approx(np.array(by_hand), abs=1e-6)
    assert class_CD.dtype == np.float32


def test_languages_without_a_file_of_prompts_take_the_names_alone(
    animals: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "prompts").mkdir()
    tree = {"lang": "en", "templates": ["{}!"], "source": "test"}
    (tmp_path / "prompts" / "en.json").write_text(json.dumps(tree))
    vectors = VECTORS | {f"{name}!": VECTORS[name] for name in ("cat", "dog", "cow")}
    results = measured(FakeModel(vectors), **animals, prompts=str(tmp_path / "prompts"))
    assert "(names alone, for want of templates, in de)" in sentence(
        results.protocol["zero_shot/s"]
    )
    assert numbers(results)["en/accuracy@1"] == 3 / 6


def test_worst_five_are_there_from_six_languages_on(tmp_path: Path) -> None:
    images = write_images(tmp_path / "p", {"a": [(9, 1, 0)], "b": [(1, 9, 0)]})
    right, wrong = {"a": "A", "b": "B"}, {"a": "B", "b": "A"}
    names = {
        lang: wrong if lang == "l5" else right for lang in ("l1", "l2", "l3", "l4", "l5", "l6")
    }
    model = FakeModel({"A": (1, 0, 0), "B": (0, 1, 0)})
    tree = {"images": images, "class_names": write_names(tmp_path / "n", names)}
    results = measured(model, **tree)
    assert numbers(results)["worst5/accuracy@1"] == 4 / 5
    assert numbers(results)["mean/accuracy@1"] == pytest.approx(5 / 6)
    assert results.counts["zero_shot/s/worst5/accuracy@1"] == 10
    five = measured(model, **tree, languages=["l1", "l2", "l3", "l4", "l5"])
    assert not any("worst" in name for name in five.metrics)


def test_a_draw_keeps_every_class_and_repeats(animals: dict[str, str]) -> None:
    drawn = [measured(FakeModel(VECTORS), **animals, pictures_per_class=1) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0].counts["zero_shot/s/en/accuracy@1"] == 3
    assert "3 pictures (at most 1 of a class, drawn with seed 0)" in sentence(
        drawn[0].protocol["zero_shot/s"]
    )


def named_pair(number: int, pixel: tuple[int, int, int], **captions: str) -> Pair:
    said = tuple(Caption(lang, text) for lang, text in captions.items())
    return Pair(f"k{number}", make_png(*pixel), said, f"k{number}", "objects", "test", "CC0-1.0")


def test_captions_of_shards_are_the_names(tmp_path: Path) -> None:
    pairs = [
        named_pair(0, (9, 1, 0), en="cat", de="Katze"),
        named_pair(1, (1, 9, 0), en="dog", de="Hund"),
        named_pair(2, (9, 2, 0), en="dog", de="Hund"),
        named_pair(3, (8, 0, 1), en="cat"),
    ]
    results = measured(FakeModel(VECTORS), shards=str(write_set(tmp_path / "s", pairs)))
    assert numbers(results)["en/accuracy@1"] == 3 / 4
    assert numbers(results)["de/accuracy@1"] == 1 / 3
    assert results.counts["zero_shot/s/de/accuracy@1"] == 3


def on_rank(run: Path, images: str, others: str, names: str) -> tuple[dict[str, Any], str]:
    """The results, and the error where rank 1 has other images than rank 0."""
    results = measured(make_encoder(run), images=images, class_names=names, accuracy_at=[1, 2])
    said = ""
    if distributed.world_size() > 1:
        with pytest.raises(UserError) as error:
            chosen = others if distributed.rank() else images
            measured(FakeModel({}), images=chosen, class_names=names)
        said = str(error.value)
    return {"metrics": results.metrics, "ci95": results.ci95, "text": results.protocol}, said


def make_case(folder: Path) -> tuple[str, str]:
    """Six images of three classes with names in three languages."""
    for number in range(6):
        (folder / "p" / f"c{number % 3}").mkdir(parents=True, exist_ok=True)
        (folder / "p" / f"c{number % 3}" / f"{number}.png").write_bytes(make_image(number))
    names = {f"l{n}": {"c0": f"red {n}", "c1": "cat", "c2": f"ball {n}"} for n in range(3)}
    return str(folder / "p"), write_names(folder / "n", names)


def test_two_ranks_have_the_results_of_one_and_refuse_other_images(tmp_path: Path) -> None:
    images, names = make_case(tmp_path)
    others = write_images(tmp_path / "others", {"c0": [(1, 2, 3)], "c1": [(3, 2, 1)]})
    case = (tiny_run(tmp_path / "run"), images, others, names)
    alone, _ = on_rank(*case)
    assert alone["metrics"].keys() > {"zero_shot/s/l0/accuracy@1", "zero_shot/s/mean/accuracy@2"}
    outcomes = run_ranks(2, on_rank, tmp_path / "store", *case)
    assert [one for one, _ in outcomes] == [alone] * 2
    assert ["differ between the ranks" in said for _, said in outcomes] == [True, True]


def test_imagenet_names_belong_to_wordnet_ids(tmp_path: Path) -> None:
    names = read_names("openai", [TENCH, GOLDFISH])
    assert names == {"en": {TENCH: "tench", GOLDFISH: "goldfish"}}
    assert len(read_templates("openai", ["en"])["en"].templates) == 80
    path = tmp_path / "babel.json"  # in Babel-ImageNet's layout
    tree = {"DE": [[1, 0], ["Goldfisch", " Schleie "]], "ZH_YUE": [[7], ["雞公"]]}
    path.write_text(json.dumps(tree))
    names = read_names(str(path), [TENCH, GOLDFISH])
    assert names["de"] == {TENCH: "Schleie", GOLDFISH: "Goldfisch"}
    assert names["yue"] == {}  # it names another class only
    assert names["en"][TENCH] == "tench"


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        (
            {"class_names": "openai"},
            "`images` has a subfolder `cat`, which is no class of `class_names: openai`",
        ),
        ({"class_names": "none.json"}, "none.json: no such file"),
        ({"images": "none"}, "none: no such folder"),
        ({"languages": ["xx"]}, "fewer than two classes have names in `xx`"),
        ({"prompts": "none"}, "`prompts: none`: no such folder"),
        ({"prompts": str(ROOT / "docs")}, "no file <lang>.json there for any of de, en"),
        ({"prompts": "openai"}, "`prompts: openai` are English, but `de` is measured too"),
        ({"shards": "x"}, "name either `images` or `shards`"),
    ],
)
def test_mistakes_are_one_sentence(
    animals: dict[str, str], tree: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as error:
        measured(FakeModel(VECTORS), **{**animals, **tree})
    assert complaint in str(error.value)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    images, names = make_case(tmp_path)
    (tmp_path / "p" / "c1" / "1.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(UserError, match=r"1\.png: does not decode"):
        measured(make_encoder(tiny_run(tmp_path / "run")), images=images, class_names=names)


@pytest.mark.parametrize("name", ["imagenet", "babel_imagenet", "emoji_scenes"])
def test_shipped_suites_are_valid(name: str) -> None:
    for entry in read_yaml(ROOT / "eval" / f"{name}.yaml")["zero_shot"]:
        config = validate(ZeroShotConfig, entry, name)
        assert config.prompts in ("label", "openai") or (ROOT / config.prompts).is_dir()
