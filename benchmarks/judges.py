"""Recall of one export by mmalign, CLIP_benchmark and mteb, offline.

    run -> open_clip export -+-> mmalign's measure_retrieval   -> recall@k
    shards, a language ------+-> CLIP_benchmark's command line -> recall@k     all three on the same images,
                             +-> mteb's retrieval task         -> hit rate@k   captions and weights
    run -> mteb.mock_run -> the mock tasks that a dual encoder can take: how many pass

Both directions, k = 1, 5, 10. mteb calls recall@k hit rate and rounds it to five decimals, so ours is rounded
for that comparison. The two libraries resolve ties in the order of the pool, mmalign against the model: `near
ties` counts the queries with a wrong answer within 1e-6 of the best right one.

Prints a table and, as the last line, one JSON object. The target is differences up to 1e-6 and no failed
task.

    python benchmarks/judges.py [--model runs/demo] [--data data/emoji_scenes/test] [--languages en de ja]

The two libraries need further packages: `.venv-judges` is created next to this file once, with pip, and takes
all other packages from the environment that runs this script (`--python PATH` names an existing one).
"""

import argparse
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from environments import make_environment

from mmalign.core.errors import UserError
from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation.embed import EmbeddedSet, embed_set
from mmalign.evaluation.retrieval import measure_retrieval
from mmalign.export.open_clip import write_open_clip
from mmalign.export.source import Source
from mmalign.models.encoder import DualModel, load_encoder
from mmalign.models.external.mteb import MtebModel
from mmalign.models.load import load_model, text_encoder_of
from mmalign.results.results import Results

REQUIREMENTS = ("mteb==2.26.24", "clip-benchmark==1.6.2")
KS = (1, 5, 10)
DIRECTIONS = {"text_to_image": "image_retrieval", "image_to_text": "text_retrieval"}
NEAR = 1e-6  # as in mmalign.evaluation.nearest

Recalls = dict[str, float]
"""By `<direction>@<k>`."""


@dataclass(frozen=True)
class Language:
    """One language of a set: images with their captions, and their embeddings.

    Attributes:
        images: P encoded images.
        texts, picture_N: the captions, and which image each describes; every image has at least one.
        image_PD, text_ND: the export's embeddings, float32, unit length.
    """

    code: str
    images: list[bytes]
    texts: list[str]
    picture_N: list[int]
    image_PD: np.ndarray
    text_ND: np.ndarray


def enter_environment(python: Path | None) -> None:
    """Restart in the environment with both libraries, which is created if needed, unless it is active."""
    if importlib.util.find_spec("mteb") and importlib.util.find_spec("clip_benchmark"):
        return
    interpreter = str(
        python.absolute() if python else make_environment("judges", REQUIREMENTS, borrow=True)
    )
    if Path(interpreter) == Path(sys.executable):
        raise UserError(f"{interpreter}: lacks {' and '.join(REQUIREMENTS)}; install them there")
    os.execv(interpreter, [interpreter, *sys.argv])


def languages_of(
    embedded: EmbeddedSet, shard_set: ShardSet, codes: Sequence[str]
) -> list[Language]:
    """The set, split into its languages.

    Raises:
        UserError: a language leaves images without a caption, which CLIP_benchmark would count as missed.
    """
    images = [shard_set.read(sample).image for sample in embedded.sample_P]
    found = []
    for code in codes:
        rows = np.flatnonzero(embedded.language_M == code)
        picture_N = embedded.picture_M[rows]
        described = len(set(picture_N.tolist()))
        if described < len(images):
            raise UserError(
                f"--languages {code}: describes {described} of {len(images)} images, but CLIP_benchmark "
                "needs a caption for each image; choose another language or set"
            )
        texts = [embedded.texts[row] for row in rows]
        vectors = (embedded.image_PD, embedded.text_MD[rows])
        found.append(Language(code, images, texts, picture_N.tolist(), *vectors))
    return found


def our_recalls(embedded: EmbeddedSet, codes: Sequence[str]) -> dict[str, Recalls]:
    """mmalign's own recalls, by language."""
    results = Results(suite="judges", model={})
    measure_retrieval(embedded, KS, results)
    prefix = f"retrieval/{embedded.name}"
    return {
        code: {
            f"{direction}@{k}": results.metrics[f"{prefix}/{code}/{direction}/recall@{k}"]
            for direction in DIRECTIONS
            for k in KS
        }
        for code in codes
    }


def clip_benchmark_recalls(language: Language, export: Path, folder: Path) -> Recalls:
    """The recalls that CLIP_benchmark's command line reports for the export.

    Raises:
        UserError: it failed; its last lines are in the message.
    """
    write_webdataset(language, folder)
    out = folder / "out.json"
    command = [
        *(sys.executable, "-m", "clip_benchmark.cli", "eval", "--no_amp", "--quiet"),
        *("--dataset", "wds/judged", "--dataset_root", str(folder), "--split", "test"),
        *("--task", "zeroshot_retrieval", "--recall_k", *map(str, KS), "--num_workers", "0"),
        *("--model", f"local-dir:{export}", "--pretrained", "none", "--output", str(out)),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise UserError(f"CLIP_benchmark failed ({done.returncode}):\n{tail}")
    metrics = json.loads(out.read_text(encoding="utf-8"))["metrics"]
    return {
        f"{direction}@{k}": metrics[f"{theirs}_recall@{k}"]
        for direction, theirs in DIRECTIONS.items()
        for k in KS
    }


def write_webdataset(language: Language, folder: Path) -> None:
    """The layout of CLIP_benchmark's `wds/` sets: one tar, the captions of an image line by line."""
    (folder / "test").mkdir(parents=True)
    (folder / "dataset_type.txt").write_text("retrieval", encoding="utf-8")
    (folder / "test" / "nshards.txt").write_text("1", encoding="utf-8")
    lines: list[list[str]] = [[] for _ in language.images]
    for text, picture in zip(language.texts, language.picture_N, strict=True):
        lines[picture].append(" ".join(text.split()))
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number, (image, captions) in enumerate(zip(language.images, lines, strict=True)):
            # The suffix only selects a decoder, which detects the format from the bytes.
            for suffix, data in (("jpg", image), ("txt", "\n".join(captions).encode())):
                member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def mteb_recalls(language: Language, model: DualModel) -> Recalls:
    """mteb's hit rates on a retrieval task built from the images and captions of the language."""
    from datasets import Dataset, Features, Image, Value

    image_ids = [f"i{number}" for number in range(len(language.images))]
    text_ids = [f"t{number}" for number in range(len(language.texts))]
    # As bytes, because opened images would be encoded again.
    shown = [{"bytes": image, "path": None} for image in language.images]
    columns = Features({"id": Value("string"), "image": Image()})
    images = Dataset.from_dict({"id": image_ids, "image": shown}, features=columns)
    texts = Dataset.from_dict({"id": text_ids, "text": language.texts})
    of_text = {text_ids[n]: {image_ids[p]: 1} for n, p in enumerate(language.picture_N)}
    of_image: dict[str, dict[str, int]] = {name: {} for name in image_ids}
    for number, picture in enumerate(language.picture_N):
        of_image[image_ids[picture]][text_ids[number]] = 1
    found = {}
    for direction, category, queries, corpus, relevant in (
        ("text_to_image", "t2i", texts, images, of_text),
        ("image_to_text", "i2t", images, texts, of_image),
    ):
        scores = run_mteb(model, f"Judged-{language.code}", category, queries, corpus, relevant)
        found.update({f"{direction}@{k}": scores[f"hit_rate_at_{k}"] for k in KS})
    return found


def run_mteb(
    model: DualModel, name: str, category: str, queries: Any, corpus: Any, relevant: Any
) -> dict[str, float]:
    """mteb's scores of a retrieval task with these queries and this corpus."""
    import mteb
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

    class Judged(AbsTaskRetrieval):
        k_values = KS
        metadata = TaskMetadata(
            name=f"{name}-{category}",
            description="Images and captions of a local shard set.",
            dataset={"path": "local", "revision": "local"},
            type="Any2AnyRetrieval",
            category=category,
            modalities=["text", "image"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],  # required, without influence
            main_score="hit_rate_at_1",
        )

        def load_data(self, **_: Any) -> None:
            data = RetrievalSplitData(
                queries=queries, corpus=corpus, relevant_docs=relevant, top_ranked=None
            )
            self.dataset = {"default": {"test": data}}
            self.data_loaded = True

    done = mteb.evaluate(
        MtebModel(model), Judged(), cache=None, show_progress_bar=False, co2_tracker=False
    )
    scores: dict[str, float] = done.task_results[0].scores["test"][0]
    return scores


def mock_tasks(model: DualModel) -> tuple[list[str], dict[str, str]]:
    """mteb's offline tasks that need only texts and images: those that pass, and why others fail."""
    import mteb
    from mteb.results.task_result import TaskError

    passed, failed = [], {}
    for name, status in mteb.mock_run(MtebModel(model)).items():
        if isinstance(status, TaskError):
            failed[name] = status.exception.strip().splitlines()[-1]
        elif status is not None:
            passed.append(name)
    return passed, failed


def near_ties(language: Language) -> int:
    """Number of queries of both directions with a wrong answer that scores like the best right one."""
    score_NP = language.text_ND @ language.image_PD.T
    right_NP = np.array(language.picture_N)[:, None] == np.arange(len(language.images))
    count = 0
    for score_QM, right_QM in ((score_NP, right_NP), (score_NP.T, right_NP.T)):
        best_Q1 = np.where(right_QM, score_QM, -np.inf).max(1, keepdims=True)
        count += int((~right_QM & (np.abs(score_QM - best_Q1) <= NEAR)).any(1).sum())
    return count


def report(code: str, ties: int, ours: Recalls, clip: Recalls, mteb: Recalls) -> None:
    """One line per direction and k."""
    for name, value in ours.items():
        cells = f"{value:>12.6f}{clip[name]:>16.6f}{mteb[name]:>12.5f}"
        sys.stdout.write(f"{code:<10}{name:<18}{cells}{ties:>11}\n")


def judge(model: Path, data: Path, codes: Sequence[str], folder: Path) -> dict[str, Any]:
    """The content of the last line."""
    encoder = load_encoder(model)
    passed, failed = mock_tasks(encoder)
    for name, reason in failed.items():
        sys.stderr.write(f"mteb: {name}: {reason}\n")
    export = folder / "export"
    export.mkdir()
    write_open_clip(Source(text_encoder_of(encoder), encoder), export, home=str(export))
    exported, shard_set = load_model(f"local-dir:{export}"), ShardSet(data)
    embedded = embed_set(exported, shard_set, "judged", codes)
    sys.stdout.write(
        f"{'language':<10}{'':<18}{'mmalign':>12}{'CLIP_benchmark':>16}{'mteb':>12}{'near ties':>11}\n"
    )
    measured = our_recalls(embedded, codes)
    of_clip, of_mteb = [0.0], [0.0]
    for language in languages_of(embedded, shard_set, codes):
        ours = measured[language.code]
        clip = clip_benchmark_recalls(language, export, folder / language.code)
        mteb = mteb_recalls(language, exported)
        report(language.code, near_ties(language), ours, clip, mteb)
        of_clip += [abs(value - clip[name]) for name, value in ours.items()]
        of_mteb += [abs(round(value, 5) - mteb[name]) for name, value in ours.items()]
    return {
        "languages": len(codes),
        "clip_benchmark_difference": max(of_clip),
        "mteb_difference": max(of_mteb),
        "mteb_mock_tasks_passed": len(passed),
        "mteb_mock_tasks_failed": len(failed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("runs/demo"))
    parser.add_argument("--data", type=Path, default=Path("data/emoji_scenes/test"))
    parser.add_argument("--languages", nargs="+", default=["en", "de", "ja"])
    parser.add_argument(
        "--python", type=Path, help="interpreter with mmalign, CLIP_benchmark and mteb"
    )
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    enter_environment(options.python)
    with tempfile.TemporaryDirectory(prefix="judges-") as name:
        figures = judge(options.model, options.data, options.languages, Path(name))
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
