"""One folder in several formats: complete, verified, replaceable, or not there at all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import build_encoder, files_of, source_of
from tiny import TEXTS, tiny_model, tiny_run

import mmalign
from mmalign.core.commit import verify, write_json
from mmalign.core.errors import UserError
from mmalign.export import build
from mmalign.export.build import FORMATS, export, write_files
from mmalign.export.licenses import License
from mmalign.export.sentence_transformers import write_sentence_transformers
from mmalign.export.source import Source
from mmalign.export.verify import LOADERS, verify_export
from mmalign.models.encoder import load_encoder
from mmalign.results.results import Results

SHARED = ("sentence-transformers", "open_clip", "onnx")


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the other libraries, which the fixture `exported` has load it."""
    monkeypatch.setattr(build, "verify_export", lambda source, folder, formats: {})


def test_a_run_is_exported_in_three_formats_and_loads_from_each(exported: Any) -> None:
    for library in (SHARED[0], "transformers (AutoModel)", "open_clip", "ONNX Runtime"):
        assert f"{library} loads it: its vectors differ from ours by at most " in exported.output
    assert verify(exported.folder)["formats"] == list(SHARED)
    assert not list(exported.folder.glob(".*"))
    expected = load_encoder(exported.run).encode_texts(TEXTS)
    for prefix in ("sentence-transformers:", "open_clip:", "onnx:", ""):
        theirs = mmalign.load(f"{prefix}{exported.folder}").encode_texts(TEXTS)
        assert np.abs(theirs - expected).max() <= 1e-5, prefix
    assert np.abs(mmalign.load(str(exported.run)).encode_texts(TEXTS) - expected).max() == 0


def test_each_library_loads_it_in_a_process_of_its_own(exported: Any) -> None:
    differences = verify_export(source_of(exported.encoder), exported.folder, SHARED)
    assert differences.keys() == {loader.library for name in SHARED for loader in LOADERS[name]}
    assert max(differences.values()) <= 1e-5


@pytest.mark.usefixtures("unverified")
def test_the_same_run_gives_the_same_bytes_and_nothing_of_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(tmp_path / "run")
    sha256 = load_encoder(run).facts["sha256"]
    results = Results(suite="s", model={"path": "/home/someone/run", "sha256": sha256})
    results.add("retrieval/scenes/pt-BR/text_to_image/recall@1", 0.25, count=40)
    (run / "eval/s").mkdir(parents=True)
    results.write(run / "eval/s/results.json")
    for name in ("first", "again"):
        export(run, tmp_path / name, SHARED[:1], License("apache-2.0"))
    first = verify(tmp_path / "first")
    assert first == verify(tmp_path / "again")
    assert {"lineage.json", "results.json", "README.md"} <= first["files"].keys()
    for name, held in files_of(tmp_path / "first").items():
        assert Path(name).suffix not in (".bin", ".pt", ".pkl", ".py")
        for trace in (str(tmp_path), "/home/someone", "is_local"):
            assert trace.encode() not in held, (name, trace)

    # A new export replaces an old one, in its formats unless others are named, and nothing else.
    export(run, tmp_path / "first", SHARED[:2])
    export(run, tmp_path / "first")
    assert verify(tmp_path / "first")["formats"] == [*SHARED[:2]]
    export(run, tmp_path / "first", ["sentence-transformers"])
    assert f"{tmp_path / 'first'}: held open_clip too" in capsys.readouterr().out
    assert not (tmp_path / "first/open_clip_config.json").exists()
    assert verify(tmp_path / "first")["formats"] == ["sentence-transformers"]
    for kept in (tmp_path / "photos", run, run / "checkpoints/step-000000001"):
        kept.mkdir(exist_ok=True)
        (kept / "dear.txt").write_text("dear", encoding="utf-8")
        with pytest.raises(UserError, match="holds something that is not an export"):
            export(run, kept, ["sentence-transformers"])
        assert (kept / "dear.txt").read_text(encoding="utf-8") == "dear"


@pytest.mark.usefixtures("in_this_process")
def test_an_export_that_another_library_reads_otherwise_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(source: Source, folder: Path) -> None:
        write_sentence_transformers(source, folder)
        path = folder / "1_Pooling/config.json"
        other = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
        write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **other})

    run = tiny_run(tmp_path / "run")
    monkeypatch.setattr(build, "write_sentence_transformers", broken)
    with pytest.raises(UserError, match="sentence-transformers: computes other vectors"):
        export(run, tmp_path / "out", ["sentence-transformers"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.usefixtures("in_this_process")
def test_weights_that_are_not_finite_are_not_exported(tmp_path: Path) -> None:
    model = tiny_model()
    torch.nn.init.constant_(model.text_projection.weight, float("nan"))
    run = tiny_run(tmp_path / "run", model)
    with pytest.raises(UserError, match="not finite"):
        export(run, tmp_path / "out", ["sentence-transformers"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_formats_that_contradict_each_other_do_not_share_a_folder(tmp_path: Path) -> None:
    source = source_of(build_encoder(pooling="cls"))
    with pytest.raises(
        UserError, match=r"--format transformers: its config\.json and that of another"
    ):
        write_files(source, tmp_path, ["sentence-transformers", "transformers"], "someone/model")


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--format tar: known are {', '.join(FORMATS)}"):
        export(tmp_path / "nowhere", tmp_path / "out", ["tar"])
