"""A suite on a tiny run: results by the contract, embeddings by themselves, errors as sentences."""

import base64
import io
import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shard_sets import make_image, make_pair, make_set, write_set
from tiny import MODEL, TEXTS, tiny_run

from mmalign.core.commit import MANIFEST, committed_folder
from mmalign.core.config import validate, write_yaml
from mmalign.core.errors import UserError
from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation.embed import embed_set
from mmalign.evaluation.suite import SuiteConfig, means_of, run_suite
from mmalign.models.encoder import Encoder, load_encoder, weights_sha256
from mmalign.results.results import Results, read_results

LANGUAGES = ("en", "ja", "sw")
SMALL: dict[str, Any] = {"recall_at": [1, 3], "gallery": ["en", "ja", "xx"]}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def encoder(run: Path) -> Encoder:
    return load_encoder(run)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images; image n has captions in en, sw + en, or en + en + ja + sw."""
    return make_set(tmp_path_factory.mktemp("set") / "test", 9)


def suite(shards: Path, **fields: Any) -> SuiteConfig:
    tree = {"name": "small", "sets": [{"name": "s", "shards": str(shards)}], **fields}
    return validate(SuiteConfig, tree, "x.yaml")


def copy_of(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    return folder


def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "step-000000001"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("eval")


@pytest.fixture(scope="module")
def results(run: Path, encoder: Encoder, shards: Path, out: Path) -> Results:
    """Of one suite with a gallery, written into `out`."""
    baselines = {"untrained": load_encoder(run, untrained=True)}
    return run_suite(suite(shards, **SMALL), encoder, out, baselines)


def test_a_suite_writes_the_contract(
    results: Results, run: Path, encoder: Encoder, shards: Path, out: Path
) -> None:
    tree = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert tree.keys() >= {"suite", "model", "metrics", "counts", "ci95", "protocol", "environment"}
    assert tree["suite"] == "small"
    assert tree["model"] == {"path": str(run), "step": 1, "sha256": weights_sha256(encoder.model)}
    parts = [
        f"retrieval/s/{lang}/{direction}/recall@{k}"
        for lang in (*LANGUAGES, "mean")
        for direction in ("text_to_image", "image_to_text")
        for k in (1, 3)
    ]
    pairs = [f"{a}-{b}" for a in LANGUAGES for b in LANGUAGES if a != b]
    bitext = [f"alignment/s/{p}/bitext{m}@1" for p in (*pairs, "mean") for m in ("", "_csls")]
    assert tree["metrics"].keys() >= {*parts, *bitext}
    assert set(tree["metrics"]) == set(tree["counts"]) == set(tree["chance"])
    assert tree["ci95"].keys() >= {*parts, *(name for name in bitext if "/mean/" not in name)}
    assert tree["protocol"].keys() == {"retrieval/s", "alignment/s"}
    assert tree["data"] == {"s": ShardSet(shards).manifest.sha256}
    assert all(0 <= tree["metrics"][name] <= 1 for name in (*parts, *bitext))
    baseline = tree["baselines"]["untrained"]
    assert set(baseline["metrics"]) == set(tree["metrics"])
    assert baseline["model"]["sha256"] != tree["model"]["sha256"]
    assert baseline["model"]["step"] == 0
    assert read_results(out / "results.json") == results


def test_counts_are_those_of_the_set(results: Results) -> None:
    # Three images of each kind: 3 + 3 + 6 English captions on 9 images, 3 Japanese, 6 Swahili.
    for direction, counts in (("text_to_image", [12, 3, 6]), ("image_to_text", [9, 3, 6])):
        names = [f"retrieval/s/{lang}/{direction}/recall@3" for lang in LANGUAGES]
        assert [results.counts[name] for name in names] == counts
    assert results.counts["retrieval/s/all/text_to_image/recall@1"] == 21
    assert results.counts["alignment/s/en-sw/bitext@1"] == 6
    assert results.counts["alignment/s/ja-sw/bitext@1"] == 3


def test_a_suite_gives_the_same_numbers_again(
    results: Results, encoder: Encoder, shards: Path, tmp_path: Path
) -> None:
    again = run_suite(suite(shards, recall_at=[1, 3]), encoder, tmp_path, {})
    assert again == replace(results, baselines={})
    assert not (tmp_path / "gallery.json").exists()  # none was asked for


def test_means_sum_up_languages_whatever_the_names_of_sets() -> None:
    names = (
        "retrieval/all/pt-BR/text_to_image/recall@1",  # a set may be called `all`
        "alignment/all/en-pt-BR/bitext@1",
        "retrieval/all/mean/text_to_image/recall@1",
        "retrieval/all/all/text_to_image/recall@1",
        "alignment/all/mean/bitext@1",
    )
    results = Results("x", {}, metrics={name: place / 8 for place, name in enumerate(names)})
    assert means_of(results) == {name: results.metrics[name] for name in names[2:]}


def test_the_gallery_shows_drawn_queries_with_their_best_images(
    results: Results, out: Path
) -> None:
    gallery = json.loads((out / "gallery.json").read_text(encoding="utf-8"))
    assert gallery["set"] == "s"
    langs = [query["lang"] for query in gallery["queries"]]
    assert langs == ["en", "ja"]  # xx has no captions, so no query
    for query in gallery["queries"]:
        assert query["text"].startswith(query["lang"])
        images = query["images"]
        assert len({image["picture"] for image in images}) == len(images) == 5
        assert [i["score"] for i in images] == sorted((i["score"] for i in images), reverse=True)
        own = f"k{int(query['text'].split()[1]):03d}"
        assert all(image["hit"] == (image["picture"] == own) for image in images)
        thumbnail = Image.open(io.BytesIO(base64.b64decode(images[0]["jpeg"])))
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (16, 16))


def test_measures_languages_and_sets_are_as_configured(
    encoder: Encoder, shards: Path, tmp_path: Path
) -> None:
    sets = [
        {"name": "a", "shards": str(shards), "measures": ["alignment"], "languages": ["en", "sw"]},
        {"name": "b", "shards": str(shards), "measures": ["retrieval"], "languages": ["ja"]},
    ]
    config = suite(shards, sets=sets, recall_at=[1], gallery=["en"])
    results = run_suite(config, encoder, tmp_path, {})
    assert {tuple(name.split("/")[:3]) for name in results.metrics} == {
        *(("alignment", "a", pair) for pair in ("en-sw", "sw-en", "mean")),
        *(("retrieval", "b", part) for part in ("ja", "mean", "all", "family:Japonic")),
    }
    assert json.loads((tmp_path / "gallery.json").read_text(encoding="utf-8"))["set"] == "a"
    # The pool is all images of the set, those without Japanese captions too.
    assert results.chance["retrieval/b/ja/text_to_image/recall@1"] == pytest.approx(1 / 9)


class TextsOnly:
    """A text encoder: it has no image tower."""

    note = ""

    def __init__(self, encoder: Encoder) -> None:
        self.facts = encoder.facts
        self.encode_texts = encoder.encode_texts

    def encode_images(self, images: Iterable[bytes], batch_size: int = 1) -> np.ndarray:
        raise UserError("a text encoder without an image tower")


def test_a_text_encoder_is_measured_where_no_image_is_needed(
    encoder: Encoder, shards: Path, tmp_path: Path
) -> None:
    texts = TextsOnly(encoder)
    sets = [{"name": "s", "shards": str(shards), "measures": ["alignment"]}]
    results = run_suite(suite(shards, sets=sets), texts, tmp_path, {})
    both = run_suite(suite(shards), encoder, tmp_path, {})
    assert results.metrics.items() <= both.metrics.items()
    with pytest.raises(UserError, match="without an image tower"):
        run_suite(suite(shards), texts, tmp_path, {})


def test_every_measure_is_in_one_file(encoder: Encoder, shards: Path, tmp_path: Path) -> None:
    dictionary = tmp_path / "words"
    dictionary.mkdir()
    pairs = [("en", "translation"), ("dog", "mbwa"), ("ball", "mpira"), ("chair", "kiti")]
    (dictionary / "en-sw.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    both = ["retrieval", "alignment", "geometry"]
    config = suite(
        shards,
        sets=[{"name": "s", "shards": str(shards), "measures": both}],
        layers={"sets": ["s"]},
        words=[{"name": "w", "folder": str(dictionary)}],
        zero_shot=[{"name": "z", "shards": str(shards)}],
    )
    results = run_suite(config, encoder, tmp_path, {})
    measured = {tuple(name.split("/")[:2]) for name in results.metrics}
    assert measured == {
        *((measure, "s") for measure in (*both, "layers")),
        ("words", "w"),
        ("zero_shot", "z"),
    }
    assert results.metrics["layers/s/feature/mean/bitext@1"] == pytest.approx(
        results.metrics["alignment/s/mean/bitext@1"]
    )


def test_a_language_that_the_data_lack_is_named(
    encoder: Encoder, shards: Path, tmp_path: Path
) -> None:
    sets = [{"name": "s", "shards": str(shards), "languages": ["en", "de"]}]
    with pytest.raises(UserError, match=r"set `s`: language `de` is not in .*; it has en, ja, sw"):
        run_suite(suite(shards, sets=sets), encoder, tmp_path / "eval", {})
    assert not (tmp_path / "eval").exists()


def test_languages_are_one_in_any_spelling(encoder: Encoder, tmp_path: Path) -> None:
    pairs = [make_pair(n, ("zh-CN", "EN") if n % 2 else ("zh_CN", "en")) for n in range(6)]
    folder = write_set(tmp_path / "set", pairs)
    sets = [{"name": "s", "shards": str(folder), "languages": ["ZH_cn", "En"]}]
    results = run_suite(suite(folder, sets=sets, gallery=["zh-cn"]), encoder, tmp_path / "e", {})
    assert results.counts["retrieval/s/zh-CN/text_to_image/recall@1"] == 6
    assert results.counts["alignment/s/en-zh-CN/bitext@1"] == 6
    gallery = json.loads((tmp_path / "e" / "gallery.json").read_text(encoding="utf-8"))
    assert [query["lang"] for query in gallery["queries"]] == ["zh-CN"]


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file in its place")
    with pytest.raises(UserError, match=r"out/results\.json: cannot be written"):
        run_suite(suite(tmp_path / "no shards"), None, tmp_path / "out", {})  # type: ignore[arg-type]


def test_an_image_that_cannot_be_decoded_is_named(encoder: Encoder, tmp_path: Path) -> None:
    pairs = [make_pair(n, ("en",)) for n in range(3)]
    pairs[1] = replace(pairs[1], image=pairs[1].image[:60])
    folder = write_set(tmp_path / "set", pairs)
    with pytest.raises(UserError, match=r"set, sample `k001`: does not decode.*; fix it or remove"):
        run_suite(suite(folder), encoder, tmp_path / "out", {})


def test_one_image_has_no_intervals(encoder: Encoder, tmp_path: Path) -> None:
    pairs = [make_pair(n, ("en", "sw"), "picture 0") for n in range(3)]
    folder = write_set(tmp_path / "set", pairs)
    results = run_suite(suite(folder), encoder, tmp_path / "out", {})
    assert results.metrics and not results.ci95


def test_a_set_without_captions_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [make_pair(0, ()), make_pair(1, ())])
    with pytest.raises(UserError, match=r"set `s`: .* has no captions to measure"):
        embed_set(encoder, ShardSet(folder), "s")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"recall_at": []}, "`recall_at` is"),
        ({"recall_at": [0]}, r"`recall_at\.0` is 0"),
        ({"sets": []}, "name what to measure"),
        ({"sets": [{"name": "a", "shards": "x"}] * 2}, "two sets have the same name"),
        ({"sets": [{"name": "a/b", "shards": "x"}]}, r"`sets\.0\.name` is 'a/b'"),
    ],
)
def test_a_suite_that_cannot_be_measured_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        suite(Path("x"), **fields)


def test_samples_of_one_image_are_one_image(encoder: Encoder, tmp_path: Path) -> None:
    # Samples 0 and 3, and 1 and 4, show the same image.
    pairs = [make_pair(n, ("en", "sw"), f"picture {n % 3}") for n in range(5)]
    embedded = embed_set(encoder, ShardSet(write_set(tmp_path / "set", pairs)), "s", ["en"])
    assert embedded.sample_P == [0, 1, 2]
    assert embedded.image_PD.shape == (3, MODEL["embedding"])
    assert embedded.picture_M.tolist() == [0, 1, 2, 0, 1]
    assert embedded.language_M.tolist() == ["en"] * 5
    assert embedded.image_PD == pytest.approx(
        encoder.encode_images(pair.image for pair in pairs[:3]), abs=1e-6
    )


def test_an_embedding_does_not_depend_on_its_batch(encoder: Encoder) -> None:
    texts = [*TEXTS, "dog", " ".join(TEXTS)]
    whole = encoder.encode_texts(texts)
    for size in (1, 3):
        assert encoder.encode_texts(texts, batch_size=size) == pytest.approx(whole, abs=1e-6)
    assert encoder.encode_texts(texts[::-1])[::-1] == pytest.approx(whole, abs=1e-6)
    images = [make_image(n) for n in range(7)]
    pictures = encoder.encode_images(images)
    assert encoder.encode_images(images, batch_size=2) == pytest.approx(pictures, abs=1e-6)
    for rows in (whole, pictures):
        assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(len(rows)), abs=1e-6)
        assert np.ptp(rows, axis=0).max() > 1e-3  # and they are not all alike
    assert encoder.encode_texts([]).shape == encoder.encode_images([]).shape == (0, 16)


def test_the_untrained_model_is_that_of_the_runs_seed(run: Path, encoder: Encoder) -> None:
    first, second = (load_encoder(run, untrained=True) for _ in range(2))
    assert first.facts == second.facts
    assert first.facts["sha256"] != encoder.facts["sha256"]
    assert not first.model.training


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="not a run folder, it has no config"):
            load_encoder(folder)


def test_a_run_without_checkpoint_or_tokenizer_is_named(run: Path, tmp_path: Path) -> None:
    bare = copy_of(run, tmp_path / "bare")
    shutil.rmtree(checkpoint(bare))
    with pytest.raises(UserError, match=r"bare/checkpoints: no checkpoint .*none was written"):
        load_encoder(bare)
    shutil.rmtree(bare / "tokenizer")
    with pytest.raises(UserError, match=r"tokenizer: .*bare/tokenizer` cannot be loaded") as caught:
        load_encoder(bare)
    assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    run: Path, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = copy_of(run, tmp_path / "damaged")
    weights = (checkpoint(damaged) / "model.safetensors").read_bytes()
    newer = damaged / "checkpoints" / "step-000000002"
    with committed_folder(newer, {"step": 2}) as folder:
        (folder / "model.safetensors").write_bytes(weights)
    assert load_encoder(damaged).facts["step"] == 2
    (newer / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    loaded = load_encoder(damaged)
    assert loaded.facts["step"] == 1
    assert loaded.facts["sha256"] == encoder.facts["sha256"]
    assert "step-000000002/model.safetensors: damaged" in capsys.readouterr().err
    (checkpoint(damaged) / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"no checkpoint that can be used \(.*00002/.*00001: "):
        load_encoder(damaged)


def test_a_checkpoint_of_another_model_is_one_sentence(run: Path, tmp_path: Path) -> None:
    other = copy_of(run, tmp_path / "other")
    config = {"seed": 0, "model": {**MODEL, "embedding": 8}}
    (other / "config.yaml").write_text(write_yaml(config))
    with pytest.raises(
        UserError, match=r"a checkpoint of another model: `image_projection"
    ) as caught:
        load_encoder(other)
    assert "\n" not in str(caught.value)
    (other / "config.yaml").write_text(write_yaml({"seed": 0}))
    with pytest.raises(UserError, match=r"config\.yaml, section `model`: the file is None"):
        load_encoder(other)


def test_metrics_of_an_untrained_model_are_near_chance(
    run: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    # Captions and images are unrelated: recall is chance.
    shards = make_set(tmp_path_factory.mktemp("many") / "test", 120, lambda _: ("en",))
    results = run_suite(suite(shards), load_encoder(run, untrained=True), tmp_path, {})
    name = "retrieval/s/all/text_to_image/recall@10"
    chance = results.chance[name]
    assert chance == pytest.approx(10 / 120)
    assert abs(results.metrics[name] - chance) < 4 * math.sqrt(chance * (1 - chance) / 120)
