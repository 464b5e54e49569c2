"""The stream: from shards to batches, in a global order that nothing but the configuration decides.

    1. plan      epoch -> order of its samples             a pure function of (data, weights, seed, epoch)
    2. position  p -> (epoch, place in it) -> sample       images are counted from the run's first one
    3. sample    read, choose captions, decode, augment    random draws from (seed, epoch, place) alone
                 drop and mask tokens
    4. batch     step s holds the positions [s * G, (s+1) * G); rank r of W takes the r-th part of them

Because step s is a pure function of the configuration, workers may prefetch in any number, ranks may
change between two runs, and the state to save is one number: the position after the batch.

A sample's picture and its captions draw from generators of their own: a run that looks at no picture
(masked language modelling) has the same captions as one that does.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmalign.batch import Batch, Caption, StreamState
from mmalign.config import Section
from mmalign.data.languages import caption_weights
from mmalign.data.preprocess import Augmentation, Preprocess, stack_pictures
from mmalign.data.reader import ShardSet
from mmalign.data.token_noise import TokenMasker, drop_tokens
from mmalign.data.tokenizer import Tokenizer
from mmalign.data.workers import leave_signals_to_the_parent
from mmalign.errors import UserError

# Separate random streams of one seed.
_ORDER, _PICTURE, _CAPTIONS = 0, 1, 2


class DataConfig(Section):
    train: tuple[str, ...] = pydantic.Field(min_length=1)
    """Folders of shards to train on, as one data set."""
    captions_per_image: int = pydantic.Field(default=1, ge=1)
    """Captions that an image brings to a step, in different languages as far as it can; fewer if it has
    fewer."""
    languages: tuple[str, ...] | None = None
    """Train on captions in these languages only; none: on all."""
    language_temperature: float | None = pydantic.Field(default=None, ge=1)
    """T: draw language l with probability proportional to (its captions)^(1/T), which repeats some images
    and omits others within an epoch. None: every image once, its captions alike."""
    augmentation: Augmentation = Augmentation()
    token_dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Share of a caption's tokens left out at random, anew each time (word dropout, Iyyer et al. 2015):
    keeps a text tower from learning few captions by heart."""
    workers: int = pydantic.Field(default=1, ge=0)
    """Processes that prepare batches, for each rank; 0: in the training process itself."""


class Plan:
    """Which sample stands at which position.

    Attributes:
        samples: (set, index in the set, numbers of its usable captions) of every usable sample.
        counts: usable captions per language.
        weights: weight of a caption of each language, or None.
    """

    def __init__(self, sets: Sequence[ShardSet], config: DataConfig, seed: int) -> None:
        self.sets = sets
        self.seed = seed
        total = Counter(lang for s in sets for langs in s.languages for lang in langs)
        lacking = sorted(set(config.languages or ()) - set(total))
        if lacking:
            raise UserError(
                f"data.languages: `{lacking[0]}` is not in the training data; it has "
                f"{', '.join(sorted(total))}"
            )
        wanted = set(config.languages or total)
        self.samples: list[tuple[int, int, tuple[int, ...]]] = []
        for number, shard_set in enumerate(sets):
            for index, langs in enumerate(shard_set.languages):
                usable = tuple(i for i, lang in enumerate(langs) if lang in wanted)
                if usable:
                    self.samples.append((number, index, usable))
        if not self.samples:
            raise UserError("data.train: no image has a caption, there is nothing to train on")
        self.counts = {lang: n for lang, n in sorted(total.items()) if lang in wanted}
        temperature = config.language_temperature
        self.weights = caption_weights(self.counts, temperature) if temperature else None
        self._order_of: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Positions of one epoch."""
        return len(self.samples)

    def languages_of(self, sample: int) -> list[str]:
        """Language of each usable caption of a sample."""
        number, index, usable = self.samples[sample]
        return [self.sets[number].languages[index][i] for i in usable]

    def order(self, epoch: int) -> np.ndarray:
        """(samples of an epoch,) int64: which sample stands at each of its places."""
        if epoch not in self._order_of:
            # Two epochs are enough: a batch can reach from one into the next.
            self._order_of = {e: o for e, o in self._order_of.items() if e == epoch - 1}
            self._order_of[epoch] = self._make_order(epoch)
        return self._order_of[epoch]

    def at(self, position: int) -> tuple[int, np.random.Generator, np.random.Generator]:
        """The sample at a position of the run, and the generators for its picture and for its captions."""
        epoch, place = divmod(position, len(self))
        picture_rng = np.random.default_rng((self.seed, _PICTURE, epoch, place))
        caption_rng = np.random.default_rng((self.seed, _CAPTIONS, epoch, place))
        return int(self.order(epoch)[place]), picture_rng, caption_rng

    def _make_order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, _ORDER, epoch))
        if self.weights is None:
            return rng.permutation(len(self))
        weight = np.array(
            [sum(self.weights[lang] for lang in self.languages_of(i)) for i in range(len(self))]
        )
        # Systematic sampling: sample i occurs floor or ceil of its expected number of times.
        offset = rng.uniform()
        edges = np.cumsum(weight) / weight.sum() * len(self) + offset
        edges[-1] = len(self) + offset  # exactly, whatever the sum was rounded to
        repeats = np.diff(np.floor(np.concatenate([[0.0], edges]))).astype(np.int64)
        return rng.permutation(np.repeat(np.arange(len(self)), repeats))


class BatchMaker(Dataset[Any]):
    """Batch of one rank by step number. Indexing is pure: the same number gives the same batch.

    Without `preprocess` no picture is decoded; with a `masker` batches have labels.
    """

    def __init__(
        self,
        plan: Plan,
        config: DataConfig,
        tokenizer: Tokenizer,
        max_length: int,
        preprocess: Preprocess | None,
        batch_size: int,
        rank: int,
        world_size: int,
        masker: "TokenMasker | None" = None,
    ) -> None:
        if batch_size < world_size:
            raise UserError(
                f"batch_size is {batch_size}, smaller than the number of ranks ({world_size}); give every "
                "rank at least one image"
            )
        if batch_size % world_size:
            raise UserError(f"batch_size {batch_size} does not divide by the {world_size} ranks")
        self.plan = plan
        self.captions_per_image = config.captions_per_image
        self.token_dropout = config.token_dropout
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.masker = masker

    def __getitem__(self, step: int) -> "Batch | UserError":
        # Returned and not raised: a loader wraps what a worker raises into a traceback.
        try:
            return self.make(step)
        except UserError as error:
            return error

    def make(self, step: int) -> Batch:
        """This rank's part of global batch `step`, counted from 0.

        Raises:
            UserError: a sample cannot be read or decoded.
        """
        share = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * share
        images, keys, picture_ids, captions, image_index, rngs = [], [], [], [], [], []
        for row, position in enumerate(range(first, first + share)):
            sample, picture_rng, caption_rng = self.plan.at(position)
            number, index, _ = self.plan.samples[sample]
            shard_set = self.plan.sets[number]
            pair = shard_set.read(index)
            if self.preprocess is not None:
                try:
                    images.append(self.preprocess(pair.image, picture_rng))
                except UserError as error:
                    raise UserError(f"{shard_set.folder}, sample `{pair.key}`: {error}") from None
            chosen = self._choose(sample, pair.captions, caption_rng)
            captions += chosen
            image_index += [row] * len(chosen)
            rngs += [caption_rng] * len(chosen)
            keys.append(pair.key)
            picture_ids.append(shard_set.picture_ids[index])
        token_NL, mask_NL, label_NL = self._tokens([c.text for c in captions], rngs)
        return Batch(
            image_BCHW=stack_pictures(images) if images else None,
            token_NL=token_NL,
            mask_NL=mask_NL,
            language_N=tuple(c.lang for c in captions),
            image_index_N=torch.tensor(image_index),
            picture_id_B=torch.tensor(np.array(picture_ids)),
            key_B=tuple(keys),
            state=StreamState(self.plan.seed, (step + 1) * self.batch_size),
            label_NL=label_NL,
            length_N=_lengths(mask_NL),
        )

    def _tokens(
        self, texts: list[str], rngs: list[np.random.Generator]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens, mask and labels of the captions; what is masked is drawn last, so that it changes nothing
        about the rest."""
        token_NL, mask_NL = self.tokenizer(texts, self.max_length)
        if self.token_dropout:
            token_NL, mask_NL = drop_tokens(
                token_NL, mask_NL, self.tokenizer.padding_id, self.token_dropout, rngs
            )
        if self.masker is None:
            return token_NL, mask_NL, None
        token_NL, label_NL = self.masker(token_NL, mask_NL, rngs)
        return token_NL, mask_NL, label_NL

    def _choose(
        self, sample: int, captions: tuple[Caption, ...], rng: np.random.Generator
    ) -> list[Caption]:
        """Captions of one image, without replacement, by the weights of their languages.

        The smallest of exponential draws with rate w is each caption with probability w / sum(w), and so
        on among the rest (Efraimidis and Spirakis 2006). A second caption in a language that is already
        there waits until every language had its turn.
        """
        _, _, usable = self.plan.samples[sample]
        weights = self.plan.weights
        draw = rng.exponential(size=len(usable))
        if weights is not None:
            draw /= [weights[captions[i].lang] for i in usable]
        turn: Counter[str] = Counter()
        ranked: list[tuple[int, int, Caption]] = []
        for place in np.argsort(draw).tolist():
            caption = captions[usable[place]]
            ranked.append((turn[caption.lang], len(ranked), caption))
            turn[caption.lang] += 1
        ranked.sort(key=lambda entry: entry[:2])
        return [caption for _, _, caption in ranked[: self.captions_per_image]]


def _lengths(mask_NL: Tensor) -> tuple[int, ...]:
    """Places of each row up to its last token, wherever the padding stands."""
    place_L = torch.arange(1, mask_NL.shape[1] + 1)
    return tuple((mask_NL * place_L).amax(1).tolist())


def open_sets(folders: Sequence[str]) -> list[ShardSet]:
    """The shard sets in the folders.

    Raises:
        UserError: a folder is no finished data set, or is empty.
    """
    return [ShardSet(Path(folder)) for folder in folders]


def captions_of(plan: Plan) -> Iterator[str]:
    """Every usable caption once, for training a tokenizer."""
    for number, index, usable in plan.samples:
        captions = plan.sets[number].read(index).captions
        yield from (captions[i].text for i in usable)


def batches(maker: BatchMaker, first_step: int, steps: int, workers: int) -> Iterator[Batch]:
    """This rank's batches of steps `first_step` ... `steps - 1`, in order.

    Raises:
        UserError: a sample cannot be used.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    loader = DataLoader(
        maker,
        batch_size=None,
        sampler=range(first_step, steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        # The loader draws a seed for its workers; from the global generator, a resumed run would then
        # draw other dropout masks than one that never stopped.
        generator=torch.Generator(),
        worker_init_fn=leave_signals_to_the_parent,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch
