"""Shuffled images: no two languages share an image any more, and nothing else changes."""

from pathlib import Path

from shard_sets import make_set
from tiny import tiny_tokenizer

from mmalign.core.config import validate
from mmalign.data.preprocess import Preprocess
from mmalign.data.stream.config import DataConfig
from mmalign.data.stream.loader import BatchLoader
from mmalign.data.stream.order import GlobalOrder, open_sets

SAMPLES, BATCH = 20, 4
EPOCH = range(SAMPLES // BATCH)
NEXT_EPOCH = range(EPOCH.stop, 2 * EPOCH.stop)


def loader(folder: Path, shuffle_images: bool, seed: int = 3) -> BatchLoader:
    fields = {"captions_per_image": 2, "shuffle_images": shuffle_images}
    config = validate(DataConfig, {"train": [str(folder)], **fields}, "test")
    order = GlobalOrder(open_sets(config), config, seed)
    view = Preprocess(8, config.augmentation)
    return BatchLoader(order, config, tiny_tokenizer(), 32, view, BATCH, rank=0, world_size=1)


def texts_by_image(batches: BatchLoader, steps: range) -> dict[str, dict[str, str]]:
    """Key of each image -> language -> its caption in that language."""
    found: dict[str, dict[str, str]] = {}
    for batch in map(batches.make, steps):
        rows = zip(batch.language_N, batch.image_index_N.tolist(), batch.text_N, strict=True)
        for lang, row, text in rows:
            found.setdefault(batch.key_B[row], {})[lang] = text
    return found


def test_shuffled_images_part_the_languages_and_change_nothing_else(tmp_path: Path) -> None:
    def languages(number: int) -> tuple[str, ...]:
        return ("en", "sw") if number % 3 else ("en",)

    folder = make_set(tmp_path / "train", SAMPLES, languages)
    plain, control = loader(folder, False), loader(folder, True)
    for step in EPOCH:
        batch, dealt = plain.make(step), control.make(step)
        assert (batch.key_B, batch.language_N) == (dealt.key_B, dealt.language_N)
        assert batch.image_BCHW is not None and dealt.image_BCHW is not None
        assert batch.image_BCHW.equal(dealt.image_BCHW)
    before, after = texts_by_image(plain, EPOCH), texts_by_image(control, EPOCH)
    for lang in ("en", "sw"):
        own = {key: texts[lang] for key, texts in before.items() if lang in texts}
        given = {key: texts[lang] for key, texts in after.items() if lang in texts}
        assert own.keys() == given.keys()
        assert sorted(own.values()) == sorted(given.values())
        assert not any(own[key] == text for key, text in given.items())
    # Two captions of one image are no longer of one sample: their texts name the number of theirs.
    both = [texts for texts in after.values() if len(texts) == 2]
    same = sum(texts["en"].split()[1] == texts["sw"].split()[1] for texts in both)
    assert same < len(both) / 3
    # The same wrong image in the next epoch and in another process, another one under another seed.
    assert texts_by_image(loader(folder, True), NEXT_EPOCH) == after
    assert texts_by_image(loader(folder, True, seed=4), EPOCH) != after
