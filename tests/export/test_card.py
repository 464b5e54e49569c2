"""The card: valid for the hub, silent where nothing is known, true in its numbers, and its snippets run."""

import html
import inspect
import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_cases import build_encoder
from huggingface_hub import ModelCard, ModelCardData
from invented_run import measured
from markdown_it import MarkdownIt
from PIL import Image
from probe_cases import encoded

from mmalign.core.config import write_yaml
from mmalign.export.build import FORMATS, write_files
from mmalign.export.card import PLACE, write_card
from mmalign.export.licenses import License
from mmalign.export.measurements import eval_results
from mmalign.export.source import Source
from mmalign.models.load import text_encoder_of
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.results import Results

LANGUAGES = ["de", "en", "no", "pt-BR", "sw", "zh-Hant", "quz"]
HOSTILE = "a | b\n---\n# <script>alert(1)</script> ```x``` [y](z) *w*"
CONFIG: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "steps": 400,
    "batch_size": 256,
    "data": {"train": ["/home/someone/shards/train"]},
    "objective": {"kind": "contrastive", "loss": "softmax", "text_text": 0.25},
    "engine": {"precision": "bf16"},
    "hub_token": "hf_abcdefghij",
}
LINEAGE: dict[str, Any] = {
    "format": 1,
    "code": {"version": "0.1.0", "commit": "0123abc", "dirty": True},
    "run": {"steps": 400, "captions_seen": 102400, "world_size": 2},
    "base_models": {"text": "xlm-roberta-base", "image": {"library": "timm", "name": "resnet10t"}},
    "data": [
        {
            "name": "scenes",
            "split": "train",
            "manifest_sha256": "0f" * 32,
            "samples": 4000,
            "captions": 5000,
            "languages": {"de": 2000, "en": 2500, "yo": 500},
            "licenses": {"CC BY 4.0": 3000, "CC0": 1000},
        },
        {"manifest_sha256": "1e" * 32, "found": False},
    ],
}


def some_results() -> Results:
    results = measured(np.random.default_rng(0), LANGUAGES, 0.6, 40)
    untrained = measured(np.random.default_rng(1), LANGUAGES, 0.0, 40)
    results.baselines["untrained"] = untrained
    untrained.metrics["text/category_unseen/mean/clean/accuracy"] = 0.99
    results.add("text/category/mean/typos/accuracy_drop", 0.4242, count=1400)
    results.add("zero_shot/things/sw/accuracy@1", np.zeros(50), chance=0.02)
    return results


@cache
def full_source() -> Source:
    encoder = build_encoder()
    return Source(text_encoder_of(encoder), encoder, some_results(), CONFIG, LINEAGE)


def card_of(source: Source, folder: Path, *formats: str, title: str = "tiny", **more: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    write_card(source, folder, formats or FORMATS, title, **more)
    return ModelCard.load(folder / "README.md")


def test_what_is_not_known_is_not_said(tmp_path: Path) -> None:
    tower = text_encoder_of(build_encoder())
    bare = TextEncoder(tower.trunk, tower.tokenizer)
    card = card_of(Source(bare), tmp_path, "sentence-transformers")
    assert card.data.to_dict() == {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", "transformers", "mmalign"],
    }
    for word in ("## Results", "## How it was trained", "Licence", "mage", "None", "sha256", "{"):
        assert word not in card.text, word
    assert "**Nothing was measured on this model**" in card.text
    assert "no projection, vectors that are not scaled to unit length" in card.text


def test_the_front_matter_is_what_the_hub_knows_and_comes_back(tmp_path: Path) -> None:
    source = full_source()
    card = card_of(source, tmp_path, license=License("apache-2.0"))
    data = card.data.to_dict()
    allowed = {*inspect.signature(ModelCardData).parameters, "model-index", "language_bcp47"}
    assert not data.keys() - allowed
    assert data["language"] == ["de", "en", "yo"] and "language_bcp47" not in data
    assert (data["license"], data["library_name"]) == ("apache-2.0", "sentence-transformers")
    assert data["base_model"] == ["xlm-roberta-base", "timm/resnet10t.c3_in1k"]
    assert data["metrics"] == ["accuracy", "recall"]
    assert source.results is not None and card.data.eval_results
    wanted = eval_results(source.results)
    assert len(wanted) == len(card.data.eval_results)
    assert all(one in card.data.eval_results for one in wanted)
    assert card.data.model_name == "tiny"
    # Without lineage the measured languages are named.
    data = card_of(Source(source.tower, source.encoder, source.results), tmp_path).data.to_dict()
    assert data["language"] == ["de", "en", "no", "pt", "quz", "sw", "zh"]
    assert data["language_bcp47"] == sorted(LANGUAGES)


def test_the_numbers_that_matter_stand_before_the_rest(tmp_path: Path) -> None:
    source = full_source()
    text = card_of(source, tmp_path).text
    short = text[text.index("## In short") : text.index("## How to load it")]
    rows = [line for line in short.splitlines() if line.startswith("| ")][1:]
    assert 3 <= len(rows) <= 5
    assert source.results is not None
    mean = source.results.metrics["retrieval/emoji_scenes/mean/text_to_image/recall@1"]
    (row,) = [line for line in rows if line.startswith("| text to image | emoji_scenes |")]
    assert f"| {100 * mean:.1f} |" in row
    # Tables of the results are folded: what is not has no table.
    results = text[text.index("## Results") : text.index("## How it was trained")]
    assert "|---" not in re.sub(r"(?s)<details>.*?</details>", "", results)


def test_pretrained_weights_are_named_with_their_place_on_the_hub(tmp_path: Path) -> None:
    facts = {
        "library": "transformers",
        "name": "someone/encoder",
        "revision": "0a1b2c",
        "sha256": "4d",
    }
    lineage = {**LINEAGE, "base_models": {"image": LINEAGE["base_models"]["image"], "text": facts}}
    tower = full_source()
    card = card_of(Source(tower.tower, tower.encoder, None, CONFIG, lineage), tmp_path)
    assert "[someone/encoder](https://huggingface.co/someone/encoder), revision 0a1b2c" in card.text
    assert "https://huggingface.co/timm/resnet10t.c3_in1k" in card.text
    assert card.data.base_model == ["someone/encoder", "timm/resnet10t.c3_in1k"]


def test_limits_are_written_from_the_measurements(tmp_path: Path) -> None:
    source = full_source()
    results, text = source.results, card_of(source, tmp_path).text
    assert results is not None
    head = "retrieval/emoji_scenes/{}/text_to_image/recall@1"
    worst = min(LANGUAGES, key=lambda code: results.metrics[head.format(code)])
    value = f"{100 * results.metrics[head.format(worst)]:.1f}"
    (line,) = [
        one for one in text.splitlines() if one.startswith("- **Text to image**, emoji_scenes (")
    ]
    assert re.search(rf"lowest of 7 languages: [^,]*\({worst}\) {value} % \(n = 40\), ", line), line
    (line,) = [one for one in text.splitlines() if "chance** (95 %" in one and "things" in one]
    assert "Swahili (sw)" in line
    assert "**No better than before training**, text task, category_unseen (accuracy)" in text
    assert "- **A caption finds its translation**, emoji_scenes (bitext@1): mean " in text
    assert "**Under noise** (typos) the accuracy of category falls by 42.4 points" in text
    assert "**Trained, never measured**: Yoruba (yo)." in text
    assert "not in the training data that is known**: Norwegian (no)" in text
    assert "Texts are cut after 32 tokens" in text and "resized to 32 x 32 pixels" in text
    # Of a text tower alone nothing is said of images that it could take.
    text = card_of(source, tmp_path, "sentence-transformers").text
    assert "the model's image tower, which is not in this folder" in text
    assert "no crop" not in text and "image.jpg" not in text


def test_the_loss_by_8_bits_is_written_with_digits_that_show_it(tmp_path: Path) -> None:
    cosine = {"mean": 0.99, "worst": 0.9, "measured_on": "24 texts"}
    counts = {"captions": 14000, "languages": 14, "pictures": 1000, "fp32": 0.99679}
    (tmp_path / "onnx").mkdir()
    for int8, interval, words, difference in (
        (
            0.99671,
            [-0.00029, 0.0],
            "99.67 % with 8-bit weights and 99.68 % without",
            "-0.01 points",
        ),
        (0.99671, [-0.00029, 0.0], "95 % interval -0.03 to 0.00: no difference is shown)", ""),
        (0.99679, [-0.0, 0.0], "99.7 % with 8-bit weights and 99.7 % without", "0.0 points"),
        (0.98, [-0.02, -0.01], "98.0 % with 8-bit weights and 99.7 % without", "-1.7 points"),
        (0.98, [-0.02, -0.01], "95 % interval -2.0 to -1.0).", ""),
    ):
        off = {"int8": int8, "difference": round(int8 - 0.99679, 5), "difference_ci95": interval}
        tree = {"int8": {"cosine": cosine, "recall@1": {**counts, **off}}}
        (tmp_path / "onnx/config.json").write_text(json.dumps(tree))
        text = card_of(full_source(), tmp_path, "onnx").text
        assert words in text and f"difference {difference}" in text


def test_other_ways_of_training_are_described(tmp_path: Path) -> None:
    masked = {"objective": {"kind": "masked_language_model", "share": 0.15}}
    tuned = {"task": {"name": "sib200", "language": "en"}, "trainable": "all", "epochs": 5}
    injected = {"lexicon": {"name": "gatitos"}, "protocol": "ours", "loss": {"kind": "infonce"}}
    tower = full_source().tower
    prefixes = {"objective": {"kind": "contrastive", "loss": "softmax", "dims": [64, 128]}}
    for config, words in (
        (prefixes, "the first 64, 128 dimensions were trained to be embeddings of their own"),
        (prefixes, "truncate_dim=128"),
        (masked, "hidden words only"),
        (tuned, "Fine-tuned on sib200, labels in English (en) only."),
        (injected, "words of gatitos drawn to their translations at one layer"),
        (injected, "low-rank adapters, loss infonce."),
    ):
        source = Source(tower, config=config)
        assert words in card_of(source, tmp_path, "sentence-transformers").text


def test_a_fine_tuned_tower_names_the_data_of_its_parent(tmp_path: Path) -> None:
    lineage = {"data": [{"file": "train.tsv", "sha256": "2d" * 32}], "parent": LINEAGE}
    source = Source(text_encoder_of(build_encoder()), lineage=lineage)
    card = card_of(source, tmp_path, "sentence-transformers")
    assert card.data.language == ["de", "en", "yo"]
    row = "| scenes | train | 4,000 | 5,000 | 3 | CC BY 4.0 (3,000), CC0 (1,000) | 0f0f0f0f0f0f |"
    assert row in card.text and "| 1e1e1e1e1e1e |" in card.text
    assert "- Before that: Size: 400 steps, 102,400 captions seen, processes: 2." in card.text


def numbers_known(source: Source) -> set[str]:
    """Every way in which the card may write a number that stands in the results or in the lineage."""
    assert source.results is not None
    values = [*source.results.metrics.values(), *source.results.chance.values()]
    values += [end for pair in source.results.ci95.values() for end in pair]
    values += source.results.baselines["untrained"].metrics.values()
    shares = {form(100 * one) for one in values for form in ("{:.1f}".format, "{:.2g}".format)}
    trees = (source.results.counts, source.results.environment, source.results.protocol)
    plain = json.dumps([*trees, source.lineage, source.config])
    return shares | set(re.findall(r"\d+(?:\.\d+)*", plain))


def test_every_number_stands_in_the_results_or_the_lineage(tmp_path: Path) -> None:
    source = full_source()
    text = card_of(source, tmp_path, "sentence-transformers").text
    text = re.sub(r"(?s)```.*?```", "", text).replace("arXiv 2103.00020", "")
    text = re.sub(r"`[0-9a-f]{64}`|\b[0-9a-f]{12}\b|sha256|recall@10?|bitext@1|95 %|-bit", "", text)
    structure = {
        *("7", "6", "5", "42", "3"),  # languages, words, pairs of languages; the step
        *("16", "32", "1"),  # width, tokens and pixels; accuracy@1
    }
    unknown = set(re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)*", text))
    unknown = {one.rstrip(",").replace(",", "") for one in unknown}
    assert unknown - numbers_known(source) - structure == set()


def test_the_same_source_gives_the_same_card_without_traces(tmp_path: Path) -> None:
    for name in ("one", "two"):
        text = card_of(full_source.__wrapped__(), tmp_path / name).content
    assert text == (tmp_path / "one/README.md").read_text(encoding="utf-8")
    for trace in ("/home/", "somewhere", "hf_abcdefghij", str(tmp_path)):
        assert trace not in text
    assert "name: tiny\n" in text and "seed: 3" in text


def hostile_source() -> Source:
    subject = HOSTILE.replace("/", "")  # which parts the names of metrics
    results = Results(suite="s", model={}, protocol={f"retrieval/{HOSTILE}": {"how": HOSTILE}})
    for part in (subject, "mean", *(f"a{letter}" for letter in "abcdefghijkl")):
        for tail in ("text_to_image/recall@1", "image_to_text/recall@1"):
            results.add(f"retrieval/{subject}/{part}/{tail}", 0.5, count=3)
    results.add(f"text/{subject}/de/clean/accuracy", 0.5, count=3)
    known = {"name": HOSTILE, "licenses": {HOSTILE: 2}, "languages": {HOSTILE: 1}}
    config = {"name": HOSTILE, "task": {"name": HOSTILE, "language": HOSTILE}}
    encoder, lineage = build_encoder(), {"data": [{**LINEAGE["data"][0], **known}]}
    return Source(text_encoder_of(encoder), encoder, results, config, lineage)


def test_untrusted_text_stays_text(tmp_path: Path) -> None:
    source = hostile_source()
    card = card_of(
        source,
        tmp_path,
        title=HOSTILE,
        license=License("mit"),
    )
    title = " ".join(HOSTILE.split())
    assert (card.data.model_name, card.data.license) == (title, "mit")
    assert source.results is not None
    assert all(one in card.data.eval_results for one in eval_results(source.results))
    tokens = MarkdownIt("commonmark").enable("table").parse(card.text)
    inline = [child for token in tokens for child in token.children or ()]
    raw = [one.content for one in (*tokens, *inline) if one.type in ("html_block", "html_inline")]
    assert any(
        html.escape(title.replace("/", "")) in block for block in raw
    )  # a long table is folded
    for block in raw:
        assert re.fullmatch(r"</?details>(<summary>[^<>]*</summary>)?", block.strip()), block
    assert not [one for one in inline if one.type in ("link_open", "image", "em_open")]
    first = next(tokens[i + 1] for i, one in enumerate(tokens) if one.type == "heading_open")
    assert "".join(one.content for one in first.children or ()) == title
    rows = [one for one in card.text.splitlines() if one.startswith("| a ")]
    assert len(rows) == 3  # the hostile names each stay in a cell of one row
    (config,) = [one.content for one in tokens if one.type == "fence" and one.info == "yaml"]
    assert config.strip() == write_yaml(source.config).strip()


def run_snippets(text: str) -> list[dict[str, Any]]:
    """Execute the Python blocks, one name space for each heading; what they leave behind."""
    spaces = []
    for section in re.split(r"\n#{2,3} ", text):
        blocks = re.findall(r"(?s)```python\n(.*?)```", section)
        if blocks:
            space: dict[str, Any] = {}
            for block in blocks:
                exec(compile(block, section.splitlines()[0], "exec"), space)
            spaces.append(space)
    return spaces


@pytest.mark.parametrize(
    ("formats", "pooling", "projection"),
    [
        (("sentence-transformers", "open_clip", "onnx"), "mean", "linear"),
        (("sentence-transformers",), "cls", "mlp"),
        (("sentence-transformers",), "last", "linear"),
        (("sentence-transformers-router", "transformers"), "cls", "linear"),
    ],
)
def test_every_snippet_runs_and_gives_our_vectors(
    formats: tuple[str, ...],
    pooling: str,
    projection: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    exported: Any,
) -> None:
    encoder = build_encoder(pooling=pooling, text_projection=projection)
    source = Source(text_encoder_of(encoder), encoder)
    folder = tmp_path / PLACE
    if "onnx" in formats:  # the graphs take long to write
        shutil.copytree(exported.folder, folder)
    else:
        folder.mkdir(parents=True)
        write_files(source, folder, formats, home=str(folder))
    card = card_of(source, folder, *formats)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    data = encoded(Image.fromarray(pixels), "PNG", {})
    (tmp_path / "image.jpg").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    text_ND = encoder.encode_texts(["two dogs", "deux chiens"])
    image_ND = encoder.encode_images([data])
    spaces = run_snippets(card.text)
    # A text tower has two: sentence-transformers, and transformers by hand; mmalign's own is the last.
    assert len(spaces) == len(formats) + 1 + ("sentence-transformers" in formats)
    scores = encoder.model.logit_scale.exp().item() * image_ND @ text_ND.T
    expected = np.exp(scores) / np.exp(scores).sum()  # of one image, over the texts
    classified = [space["probabilities"] for space in spaces if "probabilities" in space]
    assert len(classified) == sum(name != "sentence-transformers" for name in formats)
    for found in classified:
        assert np.abs(np.asarray(found) - expected).max() <= 1e-4
    for space in spaces:
        found_ND = space["embeddings"] if "embeddings" in space else space["texts"]
        assert np.abs(np.asarray(found_ND) - text_ND).max() <= 1e-5
        assert "embeddings" in space or "images" in space or len(formats) == 1
        if "images" in space:
            assert np.abs(np.asarray(space["images"]) - image_ND).max() <= 1e-5


def test_a_card_for_the_hub_loads_by_name(tmp_path: Path) -> None:
    text = card_of(full_source(), tmp_path, repo_id="someone/model").text
    assert PLACE not in text.replace('folder = "path/to/this/folder"', "")
    for line in (
        'model = SentenceTransformer("someone/model")',
        'folder = snapshot_download("someone/model")',
        'AutoModel.from_pretrained("someone/model")',
        'open_clip.get_tokenizer("hf-hub:someone/model")',
        'mmalign.load("someone/model")',
    ):
        assert line in text, line
    for block in re.findall(r"(?s)```python\n(.*?)```", text):
        compile(block, "card", "exec")
