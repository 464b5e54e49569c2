"""The probe's numbers, by hand and on tiny models: similarities, retrieval, centring, means, the artefact."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lexical_cases import (
    LANGUAGES,
    LAYERS,
    probed,
    write_decoder,
    write_decoder_with_long_start,
    write_dictionaries,
    write_encoder,
)
from ranks import run_ranks

from mmalign.core.config import load_config, validate, write_yaml
from mmalign.core.errors import UserError
from mmalign.evaluation import lexical_probe as module
from mmalign.evaluation.lexical_probe import centred, probe
from mmalign.evaluation.lexicon import Lexicon, LexiconConfig, read_lexicon
from mmalign.evaluation.suite import SuiteConfig
from mmalign.models.hidden_states import WordPooling
from mmalign.models.load import load_text_encoder
from mmalign.results.metric_names import layers_of
from mmalign.results.protocol import sentence
from mmalign.results.results import Results, read_results

METRICS = ("similarity", "similarity_random", "similarity_gain", "precision@1", "csls@1")
LAYER_NAMES = [*(str(layer) for layer in range(LAYERS + 1)), "feature"]


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory: pytest.TempPathFactory) -> Lexicon:
    more = {"ee": [("bade", "zuzu"), ("baki", "zuzu")]}  # two right answers, and one of two
    folder = write_dictionaries(tmp_path_factory.mktemp("words"), **more)
    return read_lexicon(LexiconConfig(name="toy", folder=str(folder)))


def measured(model: Path, lexicon: Lexicon, pooling: WordPooling = "content") -> Results:
    results = Results(suite="", model={})
    probe(load_text_encoder(str(model)), lexicon, results, pooling)
    return results


def probed_by(encode: object, lexicon: Lexicon, monkeypatch: pytest.MonkeyPatch) -> Results:
    """All metrics of vectors that are made by hand in place of a model's."""
    monkeypatch.setattr(module, "encode_words", encode)
    results = Results(suite="", model={})
    probe(None, lexicon, results)  # type: ignore[arg-type]
    return results


@pytest.mark.parametrize("write", [write_encoder, write_decoder])
def test_every_layer_split_and_metric_of_encoders_and_decoders(
    write: object, lexicon: Lexicon, tmp_path: Path
) -> None:
    results = measured(write(tmp_path), lexicon)  # type: ignore[operator]
    expected = {
        f"lexical/toy/{lang}/{layer}/{split}/{metric}{suffix}"
        for lang in (*LANGUAGES, "mean")
        for layer in LAYER_NAMES
        for split in ("trained", "held_out")
        for metric in METRICS
        for suffix in ("", "_centred")
    }
    assert set(results.metrics) == expected
    assert layers_of(results.metrics, "lexical", "toy") == LAYER_NAMES
    assert results.data == {"toy": lexicon.sha256} and "special ones left out" in sentence(
        results.protocol["lexical/toy"]
    )
    results.write(tmp_path / "out" / "results.json")
    assert read_results(tmp_path / "out" / "results.json") == results


def test_numbers_by_hand(lexicon: Lexicon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random vectors in place of a model's; every number again by plain loops."""
    rng = np.random.default_rng(0)
    vectors: dict[str, np.ndarray] = {}

    def encode(_: object, words: list[str], pooling: str) -> dict[str, np.ndarray]:
        for word in words:
            vector = rng.normal(size=8) + 0.5
            vectors.setdefault(word, (vector / np.linalg.norm(vector)).astype(np.float32))
        return {"0": np.stack([vectors[word] for word in words])}

    results = probed_by(encode, lexicon, monkeypatch)
    entries = lexicon.lists["ee"].entries
    english, foreign = ({*side} for side in zip(*entries, strict=True))
    for split, of in (
        ("trained", lexicon.lists["ee"].trained),
        ("held_out", lexicon.lists["ee"].held_out),
    ):
        same, other, hits = [], [], []
        for word in {one for one, _ in of}:
            right = [two for one, two in entries if one == word]
            scores = {two: float(vectors[word] @ vectors[two]) for two in foreign}
            same.append(np.mean([scores[two] for two in right]))
            other.append(np.mean([scores[two] for two in foreign if two not in right]))
            hits.append(max(scores, key=lambda two: scores[two]) in right)
        for word in {two for _, two in of}:
            right = [one for one, two in entries if two == word]
            scores = {one: float(vectors[word] @ vectors[one]) for one in english}
            hits.append(max(scores, key=lambda one: scores[one]) in right)
        head = f"lexical/toy/ee/0/{split}"
        assert results.metrics[f"{head}/similarity"] == pytest.approx(np.mean(same), abs=1e-6)
        assert results.metrics[f"{head}/similarity_random"] == pytest.approx(
            np.mean(other), abs=1e-6
        )
        assert results.metrics[f"{head}/similarity_gain"] == pytest.approx(
            np.mean(same) - np.mean(other), abs=1e-6
        )
        assert results.metrics[f"{head}/precision@1"] == pytest.approx(np.mean(hits))
        assert results.counts[f"{head}/precision@1"] == len(hits)
        assert results.chance[f"{head}/precision@1"] == pytest.approx(1 / 60, rel=0.05)
        assert results.chance[f"{head}/similarity"] == results.metrics[f"{head}/similarity_random"]


def test_translations_with_equal_vectors_are_found_and_means_are_plain(
    lexicon: Lexicon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swahili words lie where their English ones do, plus an offset that centring takes away."""
    rng = np.random.default_rng(1)
    own = {one: rng.normal(size=16) for one in lexicon.english}
    of_swahili = {foreign: english for english, foreign in lexicon.lists["sw"].entries}

    def encode(_: object, words: list[str], pooling: str) -> dict[str, np.ndarray]:
        rows = []
        for word in words:
            away = word not in own and word in of_swahili
            rows.append(own[of_swahili[word]] + 30 if away else own.get(word, rng.normal(size=16)))
        rows = np.stack(rows)
        return {"0": (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)}

    results = probed_by(encode, lexicon, monkeypatch)
    held_out = "lexical/toy/sw/0/held_out"
    assert results.metrics[f"{held_out}/similarity"] < 0.3
    assert results.metrics[f"{held_out}/similarity_gain_centred"] > 0.8
    assert results.metrics[f"{held_out}/precision@1_centred"] > 0.9
    for metric in ("similarity_gain", "precision@1", "csls@1_centred"):
        tail = f"0/held_out/{metric}"
        values = [results.metrics[f"lexical/toy/{lang}/{tail}"] for lang in LANGUAGES]
        assert results.metrics[f"lexical/toy/mean/{tail}"] == pytest.approx(np.mean(values))
        counts = [results.counts[f"lexical/toy/{lang}/{tail}"] for lang in LANGUAGES]
        assert results.counts[f"lexical/toy/mean/{tail}"] == sum(counts)


def test_centring_looks_at_trained_words_only() -> None:
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    is_trained = np.array([True, True, True, False, False, False])
    first = centred(rows, is_trained)
    rows[5] += 100
    assert torch.equal(centred(rows, is_trained)[:5], first[:5])
    torch.testing.assert_close(
        first[0], torch.nn.functional.normalize(rows[0] - rows[:3].mean(0), dim=0)
    )
    assert centred(torch.ones(3, 4), np.ones(3, bool)).abs().max() == 0


def test_the_published_artefact_and_its_cure(lexicon: Lexicon, tmp_path: Path) -> None:
    model = write_decoder_with_long_start(tmp_path)
    published, ours = measured(model, lexicon, "all"), measured(model, lexicon, "content")
    head = "lexical/toy/mean/2/trained"
    assert published.metrics[f"{head}/similarity"] > 0.9999
    assert published.metrics[f"{head}/similarity_random"] > 0.9999
    assert abs(published.metrics[f"{head}/similarity_gain"]) < 1e-4
    assert ours.metrics[f"{head}/similarity_random"] < 0.5
    # Published, the last layer was never looked at, and layers could not be told apart.
    gains = [published.metrics[f"lexical/toy/mean/{n}/trained/similarity"] for n in range(LAYERS)]
    assert max(gains) - min(gains) < 1e-4


def test_two_ranks_have_the_numbers_of_one(lexicon: Lexicon, tmp_path: Path) -> None:
    model = str(write_encoder(tmp_path / "model"))
    alone = probed(model, lexicon.config.folder)
    for metrics in run_ranks(2, probed, tmp_path / "ranks", model, lexicon.config.folder):
        assert metrics == pytest.approx(alone, abs=1e-6)


def test_a_suite_probes_any_model(lexicon: Lexicon, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mmalign.cli import app

    entry = {"name": "toy", "folder": lexicon.config.folder}
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        write_yaml(
            {"name": "lexical", "lexical": [entry, {**entry, "name": "toy_all", "pooling": "all"}]}
        )
    )
    model, out = write_decoder(tmp_path / "model"), tmp_path / "out"
    done = CliRunner().invoke(app, ["eval", str(suite), "--model", str(model), "--out", str(out)])
    assert done.exit_code == 0, done.output
    results = read_results(out / "results.json")
    assert {"lexical/toy", "lexical/toy_all"} <= set(results.protocol)
    assert "lexical/toy/mean/3/held_out/precision@1 " in done.output
    assert "similarity" not in done.output


def test_the_suite_file_is_valid_and_mistakes_are_refused() -> None:
    assert load_config(SuiteConfig, Path(__file__).parents[2] / "eval" / "lexical.yaml").lexical
    with pytest.raises(UserError, match=r"`sets`, `words`, `lexical`, `zero_shot` or `probe`"):
        validate(SuiteConfig, {"name": "empty"}, "test")
    entry = {"name": "toy", "folder": "x"}
    with pytest.raises(UserError, match="two sets have the same name"):
        validate(SuiteConfig, {"name": "twice", "lexical": [entry, entry]}, "test")
