"""The stream: from shards to batches, in a global order that only the configuration decides.

    1. position  p -> (epoch, position in it) -> sample    order.py; images are counted from the run's first
    2. sample    read, choose captions, decode, augment    random draws from (seed, epoch, position) alone
                 drop and mask tokens
                 one that cannot be used -> a substitute   from (seed, epoch, position, attempt) alone
    3. batch     step s holds the positions [s * G, (s+1) * G), those of one group together; rank r of W takes
                 the r-th part of them: some groups, or a part of one

Step s is a pure function of the configuration: any number of workers may prefetch, and the number of ranks
may change between two runs, to any that divides `data.groups` or is divided by it.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmalign.core.batch import Batch, Caption, StreamState, Unusable
from mmalign.core.errors import UserError, describe_os_error, one_line
from mmalign.core.workers import leave_signals_to_the_parent, start_workers
from mmalign.data.images import UndecodableImage
from mmalign.data.preprocess import Preprocess, stack_images
from mmalign.data.shards.manifest import Manifest
from mmalign.data.shards.reader import UnusableSample, is_content_hash, picture_id
from mmalign.data.stream.config import DataConfig, check_ranks
from mmalign.data.stream.image_features import FeatureSet
from mmalign.data.stream.order import GlobalOrder
from mmalign.data.stream.shuffled_captions import ShuffledCaptions
from mmalign.data.stream.token_noise import TokenMasker, drop_tokens
from mmalign.data.tokenizer import Tokenizer

ATTEMPTS = 32
"""Substitutes that are tried for a position before a run gives up."""


@dataclass(frozen=True)
class _Sample:
    """A sample as it goes into a batch."""

    key: str
    picture_id: int
    captions: list[Caption]
    caption_rng: np.random.Generator  # which has drawn the captions
    image: Tensor | None
    feature: Tensor | None
    taught: Tensor | None


def _origin(manifest: Manifest) -> str:
    """What data sets have in common that were built or chosen from one source: identities hold in all."""
    recipe = manifest.recipe
    while "from" in recipe:  # of a set that was chosen
        recipe = recipe["from"]
    return json.dumps([manifest.name, recipe], sort_keys=True)


@dataclass(eq=False)
class BatchLoader(Dataset[Any]):
    """Batch of one rank by step number. Indexing is pure: the same number gives the same batch.

    With `features`, one for each set of the order, these are read; else with `preprocess` images are decoded.
    With `teacher_features`, likewise, a teacher's are read too.
    With a `masker` batches have labels.
    """

    plan: GlobalOrder
    config: DataConfig
    tokenizer: Tokenizer
    max_length: int
    preprocess: Preprocess | None
    batch_size: int
    rank: int
    world_size: int
    masker: TokenMasker | None = None
    features: Sequence[FeatureSet] | None = None
    teacher_features: Sequence[FeatureSet] | None = None

    def __post_init__(self) -> None:
        check_ranks(self.batch_size, self.plan.groups, self.world_size)
        self.plan.will_read(max(1, self.plan.groups // self.world_size))
        self._shuffled = ShuffledCaptions(self.plan.sets, self.plan.seed)
        origins = [_origin(one.manifest) for one in self.plan.sets]
        self._scopes = origins if len(set(origins)) > 1 else [""] * len(origins)

    def __getitem__(self, step: int) -> "Batch | UserError":
        # Returned and not raised: a DataLoader turns what a worker raises into a traceback.
        try:
            return self.make(step)
        except UserError as error:
            return error
        except OSError as error:
            return UserError(describe_os_error(error))

    def make(self, step: int) -> Batch:
        """This rank's part of global batch `step`, counted from 0."""
        share = self.batch_size // self.world_size
        rows = range(self.rank * share, (self.rank + 1) * share)
        unusable: list[Unusable] = []
        # The ranks' parts follow each other, so together they are the global batch in its order.
        positions = self.plan.positions(step, self.batch_size, rows)
        samples = [self._sample(position, unusable) for position in positions]
        captions = [(row, c, s.caption_rng) for row, s in enumerate(samples) for c in s.captions]
        rngs = [rng for _, _, rng in captions]
        token_NL, mask_NL = self.tokenizer([c.text for _, c, _ in captions], self.max_length)
        label_NL = None
        if dropout := self.config.token_dropout:
            padding_id = self.tokenizer.padding_id
            token_NL, mask_NL = drop_tokens(token_NL, mask_NL, padding_id, dropout, rngs)
        if self.masker is not None:  # drawn last, so that it changes no other draw
            token_NL, label_NL = self.masker(token_NL, mask_NL, rngs)
        images = [sample.image for sample in samples if sample.image is not None]
        features = [sample.feature for sample in samples if sample.feature is not None]
        taught = [sample.taught for sample in samples if sample.taught is not None]
        count_L = torch.arange(1, mask_NL.shape[1] + 1)
        return Batch(
            image_BCHW=stack_images(images) if images else None,
            token_NL=token_NL,
            mask_NL=mask_NL,
            language_N=tuple(caption.lang for _, caption, _ in captions),
            image_index_N=torch.tensor([row for row, _, _ in captions]),
            picture_id_B=torch.tensor([sample.picture_id for sample in samples]),
            key_B=tuple(sample.key for sample in samples),
            state=StreamState(self.plan.seed, (step + 1) * self.batch_size),
            label_NL=label_NL,
            # Up to the last token, and not the sum of the mask: padding may be on the left.
            length_N=tuple((mask_NL * count_L).amax(1).tolist()),
            feature_BF=torch.stack(features) if features else None,
            teacher_BF=torch.stack(taught) if taught else None,
            text_N=tuple(caption.text for _, caption, _ in captions),
            unusable=tuple(unusable),
        )

    def _sample(self, position: int, unusable: list[Unusable]) -> _Sample:
        """The sample at a position, or its first substitute; what cannot be used is added to `unusable`."""
        for attempt in range(1 + ATTEMPTS):
            number, index = self.plan.locate(self.plan.sample_at(position, attempt))
            try:
                return self._read(position, number, index)
            except UnusableSample as error:
                shard_set = self.plan.sets[number]
                shard = shard_set.manifest.shards[shard_set.locate(index)[0]].file
                bad = Unusable(
                    position, attempt, str(shard_set.folder), shard, error.key, error.reason
                )
                unusable.append(bad)
        raise UserError(
            f"data.train: neither the sample at position {position} nor {ATTEMPTS} others in its place can "
            f"be used, the last one is `{bad.key}` in {bad.data}/{bad.shard} ({bad.reason}); `mmalign data "
            "verify` names what is damaged"
        )

    def _read(self, position: int, number: int, index: int) -> _Sample:
        """Sample `index` of a set, with the random draws of a position; or an UnusableSample."""
        decodes = self.features is None and self.preprocess is not None
        pair = self.plan.sets[number].read(index, with_image=decodes)
        picture_rng, caption_rng = self.plan.generators(position)
        captions = self._usable(pair.captions)
        if not captions:
            raise UnusableSample("no caption", key=pair.key)
        image = feature = taught = None
        if self.teacher_features is not None:
            taught = self.teacher_features[number].read(index)
        if self.features is not None:
            feature = self.features[number].read(index)
        elif self.preprocess is not None:
            try:
                image = self.preprocess(pair.image, picture_rng)
            except UndecodableImage as error:
                raise UnusableSample(error.reason, str(error), key=pair.key) from None
        chosen = self._choose(captions, caption_rng)
        if self.config.shuffle_images:
            chosen = [self._of_another(number, index, captions, caption) for caption in chosen]
        # A number or a path names one image in its own data set, and another one elsewhere.
        scope = "" if is_content_hash(pair.picture) else self._scopes[number]
        picture = picture_id(scope + pair.picture)
        return _Sample(pair.key, picture, chosen, caption_rng, image, feature, taught)

    def _usable(self, captions: Iterable[Caption]) -> list[Caption]:
        """Those in a language and of a field of the run."""
        rates = self.config.captions
        return [
            caption
            for caption in captions
            if caption.lang in self.plan.counts and (rates is None or caption.field in rates)
        ]

    def _of_another(
        self, number: int, index: int, captions: list[Caption], chosen: Caption
    ) -> Caption:
        """The caption that an image gets in place of a chosen one of its own (`data.shuffle_images`)."""
        partner = self._shuffled.partner(number, index, chosen.lang)  # of any group
        other = self.plan.sets[number].read(partner, with_image=False)
        own, its = (
            [caption for caption in some if caption.lang == chosen.lang]
            # Who was dealt to whom knows languages, not fields: a partner may have none of the run's.
            for some in (captions, self._usable(other.captions) or other.captions)
        )
        return its[own.index(chosen) % len(its)]

    def _choose(self, captions: list[Caption], rng: np.random.Generator) -> list[Caption]:
        """Captions of one image, without replacement, by the weights of their languages."""
        # The smallest of exponential draws with rates w is each caption with probability w / sum(w), and so
        # on among the rest (Efraimidis and Spirakis 2006).
        weights = self.plan.mixture.weights
        draw = rng.exponential(size=len(captions))
        if weights is not None:
            draw /= [weights[caption.lang] for caption in captions]
        if (rates := self.config.captions) is not None:
            # The rate is of the field, however many captions of it an image has.
            count = Counter(caption.field for caption in captions)
            draw /= [rates[caption.field] / count[caption.field] for caption in captions]
        # The first caption of each language comes before the second of any. The sort is stable.
        turn: Counter[str] = Counter()
        ranked: list[tuple[int, Caption]] = []
        for caption in (captions[number] for number in np.argsort(draw).tolist()):
            ranked.append((turn[caption.lang], caption))
            turn[caption.lang] += 1
        ranked.sort(key=lambda entry: entry[0])
        return [caption for _, caption in ranked[: self.config.captions_per_image]]


def captions_of(plan: GlobalOrder) -> Iterator[str]:
    """Every usable caption once, for training a tokenizer; samples that cannot be read are left out.

    No image is read, and no file stays open.
    """
    for shard_set in plan.sets:
        for index in range(len(shard_set)):
            try:
                captions = shard_set.read(index, with_image=False).captions
            except UnusableSample:
                continue
            yield from (caption.text for caption in captions if caption.lang in plan.counts)
        shard_set.close()


def batches(maker: BatchLoader, first_step: int, steps: int, workers: int) -> Iterator[Batch]:
    """This rank's batches of steps `first_step` ... `steps - 1`, in order."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are parallel already
    loader = DataLoader(
        maker,
        batch_size=None,
        sampler=range(first_step, steps),
        num_workers=workers,
        prefetch_factor=maker.config.prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
        # The loader draws a seed for its workers. From the global generator, a resumed run would then draw
        # other dropout masks than one that never stopped.
        generator=torch.Generator(),
        worker_init_fn=leave_signals_to_the_parent,
    )
    try:
        for batch in start_workers(loader):
            if isinstance(batch, UserError):
                raise batch
            yield batch
    except RuntimeError as error:  # torch has no class of its own for these
        if not re.search("exited unexpectedly|Too many open files", str(error)):
            raise
        raise UserError(
            f"data.workers: a process that prepares batches failed ({one_line(error)}); if it lacks open "
            "files, raise `ulimit -n`; if it was killed for lack of memory, give fewer workers"
        ) from None


def to_device(stream: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on a GPU; a copy runs beside the step before, which the host does not wait for."""
    if device.type != "cuda":
        yield from stream
        return
    copying = torch.cuda.Stream(device)
    for batch in stream:
        with torch.cuda.stream(copying):
            moved = batch.to(device)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copying)
        for tensor in moved.inputs.values():
            tensor.record_stream(computing)  # its memory is free only when the step has used it
        yield moved
