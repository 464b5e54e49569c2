"""An injection from files to files: protocols, the choice of a layer, seeds, the output folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lexical_cases import (
    ENGLISH,
    LAYERS,
    write_decoder_with_long_start,
    write_dictionaries,
    write_encoder,
)
from tiny import tiny_run
from typer.testing import CliRunner

from mmalign.cli import app
from mmalign.core.commit import verify
from mmalign.core.config import load_config, validate, write_yaml
from mmalign.core.errors import UserError
from mmalign.models.load import load_text_encoder
from mmalign.results.protocol import sentence
from mmalign.results.results import Results, read_results
from mmalign.text.jobs import as_task, job_of, name_of, read_job, run_cell
from mmalign.text.lexical.config import PUBLISHED, LexicalInjectionConfig
from mmalign.text.lexical.inject import choose_layer, inject, run_seed

ROOT = Path(__file__).parents[3]
RUN_FILE = ROOT / "train" / "finetune" / "lexical_injection.yaml"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dictionaries(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_encoder(tmp_path_factory.mktemp("encoder")))


def tree_of(words: Path, **fields: Any) -> dict[str, Any]:
    tree = {"lexicon": {"name": "toy", "folder": str(words)}, "epochs": 2, "batch_size": 16}
    return {**tree, "lr": 3e-3, "warmup_steps": 2, **fields}


def config(words: Path, **fields: Any) -> LexicalInjectionConfig:
    return validate(LexicalInjectionConfig, tree_of(words, **fields), "test")


def test_before_and_after_stand_side_by_side_and_the_tower_is_a_tower(
    words: Path, encoder: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    results = inject(config(words, layer=2), encoder, out)
    assert read_results(out / "results.json") == results
    assert load_config(LexicalInjectionConfig, out / "config.yaml") == config(words, layer=2)
    before = {n for n in results.metrics if n.startswith("lexical/toy/")}
    after = {n for n in results.metrics if n.startswith("injected/toy/")}
    assert {n.partition("/")[2] for n in before} == {n.partition("/")[2] for n in after}
    assert len(before) + len(after) == len(results.metrics)
    moved = {
        n for n in before if results.metrics[n] != results.metrics[n.replace("lexical", "injected")]
    }
    assert "lexical/toy/mean/2/trained/similarity_gain" in moved
    assert not any("/mean/0/" in n for n in moved), "the embeddings stay"
    assert (
        results.model["layer"] == 2
        and results.model["sha256"] == load_text_encoder(encoder).facts["sha256"]
    )
    facts = verify(out / "tower")
    assert facts["task"] == "toy" and facts["data"][0]["files"].keys() == {"en-ee.tsv", "en-sw.tsv"}
    again, trained = run_seed(load_text_encoder(encoder), config(words, layer=2), 0)
    assert again.metrics == results.metrics
    np.testing.assert_allclose(
        load_text_encoder(str(out)).encode(ENGLISH), trained.encode(ENGLISH), atol=1e-6
    )


def test_several_seeds_and_their_mean(words: Path, encoder: str, tmp_path: Path) -> None:
    results = inject(config(words, seeds=[0, 1], epochs=1), encoder, tmp_path)
    name = "toy/mean/1/held_out/similarity_gain"
    each = [read_results(tmp_path / f"seed-{seed}" / "results.json") for seed in (0, 1)]
    values = [one.metrics[f"injected/{name}"] for one in each]
    assert results.metrics[f"injected/{name}"] == pytest.approx(np.mean(values))
    assert values[0] != values[1] and results.model["seeds"] == [0, 1]
    assert sentence(results.protocol["injected/toy"]).endswith("Mean of seeds: 2.")
    # What no seed changes keeps the interval over its words.
    own = "lexical/toy/ee/1/held_out/similarity_gain"
    assert results.ci95[own] == each[0].ci95[own] and results.ci95[own][0] < results.ci95[own][1]
    assert "mean_of_seeds" not in results.protocol["lexical/toy"]
    with pytest.raises(UserError, match="one tower per seed"):
        load_text_encoder(str(tmp_path))


def before_with(gains: list[float], similarities: list[float], subject: str = "toy") -> Results:
    results = Results(suite="", model={})
    for layer, (gain, same) in enumerate(zip(gains, similarities, strict=True)):
        head = f"lexical/{subject}/mean/{layer}/trained"
        results.add(f"{head}/similarity_gain", gain, 1)
        results.add(f"{head}/similarity", same, 1)
    results.add(f"lexical/{subject}/mean/feature/trained/similarity_gain", 0.99, 1)
    return results


def test_the_layer_is_chosen_on_trained_words_and_never_the_embeddings(words: Path) -> None:
    before = before_with([0.9, 0.2, 0.1, 0.3], [0.99, 0.4, 0.8, 0.9])
    assert choose_layer(before, config(words)) == 3
    assert choose_layer(before, config(words, best_by="similarity")) == 2  # never the last
    assert choose_layer(before, config(words, layer="last")) == 3
    assert choose_layer(before, config(words, layer=1)) == 1
    with pytest.raises(UserError, match=r"layer: is 4, but the model has 3; lower it"):
        choose_layer(before, config(words, layer=4))
    one_block = before_with([0.9, 0.2], [0.99, 0.4])
    assert choose_layer(one_block, config(words, best_by="similarity")) == 1
    published = before_with([0.9, 0.2, 0.1, 0.3], [0.99, 0.4, 0.8, 0.9], "toy_all_tokens")
    assert choose_layer(published, config(words, protocol="published")) == 2


def test_the_published_protocol_is_what_the_code_of_the_paper_does(words: Path) -> None:
    own = config(words)
    assert (own.protocol, own.pooling, own.best_by) == ("ours", "content", "similarity_gain")
    assert own.loss.kind == "infonce" and own.adapters == "up_to_layer"
    published = config(words, protocol="published", layer=3, lr=1.0, loss={"kind": "infonce"})
    tree = published.model_dump(mode="json")
    assert PUBLISHED.items() <= tree.items()
    assert (tree["epochs"], tree["batch_size"], tree["lr"]) == (5, 8, 2e-4)
    assert tree["loss"] == {"kind": "hinge", "margin": 0.4} and tree["pooling"] == "all"
    assert tree["lora"] == {"rank": 16, "alpha": 32.0, "dropout": 0.05, "targets": "query_value"}
    assert validate(LexicalInjectionConfig, tree, "test") == published


def test_the_published_protocol_shows_its_artefact(words: Path, tmp_path: Path) -> None:
    """Random pairs are as near as translations where the layer was chosen; the loss remains at its margin."""
    tower = load_text_encoder(str(write_decoder_with_long_start(tmp_path)))
    results, _ = run_seed(tower, config(words, protocol="published"), 0)
    head = f"lexical/toy_all_tokens/mean/{results.model['layer']}/trained"
    assert results.metrics[f"{head}/similarity"] > 0.9999
    assert results.metrics[f"{head}/similarity_random"] > 0.9999
    assert results.model["layer"] < LAYERS
    assert results.model["train_loss"] == pytest.approx(0.4, abs=1e-3)
    ours = f"lexical/toy/mean/{results.model['layer']}/trained"
    assert results.metrics[f"{ours}/similarity"] < 0.9
    assert "settings of arXiv 2506.15415" in sentence(results.protocol["injected/toy"])


def test_a_study_sees_precision_of_held_out_words(words: Path, encoder: str) -> None:
    job = job_of(tree_of(words, layer=2), "test")
    tower = load_text_encoder(encoder)
    results = run_seed(tower, job, 0)[0]
    cell = as_task(results, job)
    assert name_of(job) == "toy"
    assert set(cell.metrics) == {
        f"text/toy/{lang}/clean/precision@1" for lang in ("ee", "sw", "mean")
    }
    for lang in ("ee", "sw", "mean"):
        name, own = (
            f"text/toy/{lang}/clean/precision@1",
            f"injected/toy/{lang}/2/held_out/precision@1",
        )
        assert (
            cell.metrics[name] == results.metrics[own] and cell.chance[name] == results.chance[own]
        )
        assert cell.counts[name] == results.counts[own]
    assert "at layer 2" in sentence(cell.protocol["text/toy"])
    nothing = run_cell(job_of(tree_of(words, layer=2, epochs=0), "test"), tower, 0, words.parent)
    assert (
        nothing.metrics["text/toy/mean/clean/precision@1"]
        == results.metrics["lexical/toy/mean/2/held_out/precision@1"]
    )


def test_the_command_line(words: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    arguments = ["finetune", str(RUN_FILE), "--model", str(run), f"lexicon.folder={words}"]
    overrides = ["lexicon.name=toy", "lexicon.languages=null", "seeds=[0]", "epochs=1"]
    done = CliRunner().invoke(app, arguments + overrides)
    assert done.exit_code == 0, done.output
    out = run / "finetune" / "toy"
    assert "injected/toy/mean/1/held_out/precision@1 " in done.output
    assert str(out / "results.json") in done.output
    assert load_text_encoder(str(out)).encode(ENGLISH).any()  # an export starts so
    assert json.loads((out / "results.json").read_text())["model"]["layer"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": {"name": "x"}}, "unknown key `task`"),
        ({"layer": 0}, "`layer"),
        ({"layer": "middle"}, "`layer"),
        ({"loss": {"kind": "triplet"}}, r"`loss.kind` is `triplet`; known here: hinge, infonce"),
        ({"seeds": [1, 1]}, "a seed is listed twice"),
        ({"best": "x"}, "unknown key `best`; did you mean `best_by`"),
    ],
)
def test_refusals_are_one_sentence(
    words: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(write_yaml(tree_of(words, **change)))
    with pytest.raises(UserError, match=message) as caught:
        read_job(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_the_run_file_is_valid() -> None:
    job = read_job(RUN_FILE)
    assert isinstance(job, LexicalInjectionConfig) and len(job.seeds) >= 3
    assert read_job(RUN_FILE, ["protocol=published"]).lora.rank == 16  # type: ignore[union-attr]
