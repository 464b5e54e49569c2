"""The section `data` of a run file: data sets, how they are mixed and read, how captions are drawn."""

from typing import Annotated, Any

import pydantic
from pydantic_core import PydanticCustomError

from mmalign.core.config import Section
from mmalign.core.errors import UserError
from mmalign.data.preprocess import Augmentation
from mmalign.data.storage.remote import RemoteConfig


class TrainSet(Section):
    """One data set of a mixture. If the weight is 1, a run file contains only the folder."""

    path: str
    """Folder of shards, or its URL: s3://, gs://, https://, hf://."""
    weight: float = pydantic.Field(default=1.0, gt=0)
    """How often its images are drawn, compared with those of a set of weight 1."""
    rate: float | None = pydantic.Field(default=None, gt=0)
    """Part of all draws that are of this set, compared with the rates of the others (70 and 30), however many
    images each has. All sets have one, or none."""

    def __fspath__(self) -> str:  # so that it can be used as a folder
        return self.path

    @pydantic.model_serializer(mode="wrap")
    def _as_written(self, write: pydantic.SerializerFunctionWrapHandler) -> Any:
        if self.rate is not None:
            return {"path": self.path, "rate": self.rate}
        tree = {name: value for name, value in write(self).items() if name != "rate"}
        return self.path if self.weight == 1 else tree

    @pydantic.model_validator(mode="after")
    def _is_weighed_once(self) -> "TrainSet":
        if self.rate is not None and self.weight != 1:
            raise ValueError("give `weight` or `rate`, not both")
        return self


def _named(entry: Any) -> Any:
    """An entry of `train` as TrainSet reads it."""
    if isinstance(entry, str):
        return {"path": entry}
    if not isinstance(entry, dict | TrainSet):
        raise PydanticCustomError("string_type", "Input should be a valid string")
    return entry


def check_ranks(batch_size: int, groups: int, ranks: int) -> None:
    """Refuse ranks that cannot read equal parts of a batch, each of whole groups or of one."""
    if batch_size % ranks:
        raise UserError(
            f"batch_size: {batch_size} does not divide by the {ranks} ranks; every rank needs the same "
            "number of images, at least one"
        )
    if batch_size % groups or (ranks % groups and groups % ranks):
        raise UserError(
            f"data.groups: {groups} groups do not fit a batch of {batch_size} images on {ranks} ranks; the "
            "batch must divide by the groups, and the ranks must divide them or be divided by them"
        )


Share = Annotated[float, pydantic.Field(gt=0, le=1)]


class DataConfig(Section):
    train: tuple[Annotated[TrainSet, pydantic.BeforeValidator(_named)], ...] = pydantic.Field(
        min_length=1
    )
    """Folders of shards, or their URLs, to train on as one data set: names, or {path, weight}, or {path,
    rate} for all."""
    remote: RemoteConfig = RemoteConfig()
    """How data at a URL are downloaded and kept. The cache must hold two windows of `shuffle_shards`."""
    captions_per_image: int = pydantic.Field(default=1, ge=1)
    """Captions of each image in a step, in different languages if possible; fewer if it has fewer."""
    captions: dict[str, Annotated[float, pydantic.Field(gt=0)]] | None = None
    """How often a caption of each field is drawn, `{alt: 0.5, recaption: 0.5}`, where images have captions of
    several; captions of other fields are not used. None: all captions alike."""
    languages: tuple[str, ...] | None = None
    """Train on captions in these languages only; none: on all."""
    language_temperature: float | None = pydantic.Field(default=None, ge=1)
    """T: draw language l with probability proportional to (its captions)^(1/T), which repeats some images
    and omits others within an epoch. None: every image once, its captions alike."""
    language_floor: Share | dict[str, Share] | None = None
    """Smallest share of each language among the first captions of the images, after the temperature (if there
    is none: 1); or of some languages, `{sw: 0.05}`."""
    language_cap: Share | dict[str, Share] | None = None
    """Largest share of each language among these captions, or of some, `{en: 0.3}`."""
    shuffle_shards: int = pydantic.Field(default=64, ge=1)
    """Shards that are shuffled together. An epoch goes through the data in windows of at most so many shards
    (with groups or repeats: on average), drawn at random anew each time, and reads a window in any order. Up
    to 64 shards of the usual 5,000 to 10,000 samples are thus shuffled in full; of larger data one window
    is needed at a time, and batches of a set that is sorted by source have almost the composition of a full
    shuffle."""
    groups: int = pydantic.Field(default=1, ge=1)
    """C: the shards are cut into C groups, each of which supplies 1/C of every batch, from windows of its
    own. A rank reads only the shards of its groups, and any number of ranks that divides C, or that C
    divides, sees the same batches. For data larger than a disk, or downloaded: the number of nodes."""
    shuffle_images: bool = False
    """Give every caption the image of another sample, the same one in all epochs: the control that keeps
    texts, images and loss and removes what joins the languages of an image (`shuffled_captions.py`)."""
    augmentation: Augmentation = Augmentation()
    image_features: bool = False
    """Read cached image features of the frozen image tower (`mmalign embed`) instead of pixels. It is a field
    and not automatic: a run must not depend on what else is in a folder, and one that expects features must
    not silently use pixels, which are many times slower."""
    token_dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Share of a caption's tokens left out at random, anew each time (word dropout, Iyyer et al. 2015), so
    that a text tower does not memorize few captions."""
    max_bad_fraction: float = pydantic.Field(default=0.01, ge=0, le=1)
    """A run stops when more than this share of its samples could not be used."""
    workers: int = pydantic.Field(default=1, ge=0)
    """Processes that prepare batches, for each rank; 0: in the training process itself."""
    prefetch: int = pydantic.Field(default=4, ge=1)
    """Batches that each of these prepares ahead. They wait in shared memory (`/dev/shm`)."""

    @property
    def weighs_languages(self) -> bool:
        """Whether images are drawn by the languages of their captions."""
        fields = (self.language_temperature, self.language_floor, self.language_cap)
        return any(field is not None for field in fields)

    @property
    def rates(self) -> tuple[float, ...] | None:
        """The part of all draws of each set; None: by the weights of images."""
        rates = [one.rate for one in self.train if one.rate is not None]
        return tuple(rate / sum(rates) for rate in rates) or None

    @pydantic.model_validator(mode="after")
    def _fields_fit_together(self) -> "DataConfig":
        floor, cap = self.language_floor or 0.0, self.language_cap or 1.0
        named = [one for one in (floor, cap) if isinstance(one, dict)]
        for lang in sorted(set().union(*named)) or [""]:
            low = floor.get(lang, 0.0) if isinstance(floor, dict) else floor
            high = cap.get(lang, 1.0) if isinstance(cap, dict) else cap
            if low > high:
                of = f" for `{lang}`" if lang else ""
                raise ValueError(f"`language_floor` is above `language_cap`{of}; lower it")
        if self.rates and len(self.rates) < len(self.train):
            raise ValueError(
                "some sets of `train` have a `rate` and others none; give all of them one"
            )
        if self.rates and self.weighs_languages:
            raise ValueError(
                "`rate` of a set cannot be kept together with shares of languages (`language_temperature`, "
                "`language_floor`, `language_cap`); give `weight` instead"
            )
        if self.image_features and self.augmentation != Augmentation():
            raise ValueError(
                "`image_features` were made of unchanged images, so `augmentation` has no effect; remove "
                "one of the two"
            )
        return self
