"""The section `data` of a run file: data sets, how they are mixed and read, how captions are drawn."""

from typing import Annotated, Any

import pydantic
from pydantic_core import PydanticCustomError

from mmalign.core.config import Section
from mmalign.data.preprocess import Augmentation
from mmalign.data.storage.remote import RemoteConfig


class TrainSet(Section):
    """One data set of a mixture. If the weight is 1, a run file contains only the folder."""

    path: str
    """Folder of shards, or its URL: s3://, gs://, https://, hf://."""
    weight: float = pydantic.Field(default=1.0, gt=0)
    """How often its images are drawn, compared with those of a set of weight 1."""

    def __fspath__(self) -> str:  # so that it can be used as a folder
        return self.path

    @pydantic.model_serializer(mode="wrap")
    def _as_written(self, write: pydantic.SerializerFunctionWrapHandler) -> Any:
        return self.path if self.weight == 1 else write(self)


def _named(entry: Any) -> Any:
    """An entry of `train` as TrainSet reads it."""
    if isinstance(entry, str):
        return {"path": entry}
    if not isinstance(entry, dict | TrainSet):
        raise PydanticCustomError("string_type", "Input should be a valid string")
    return entry


Share = Annotated[float, pydantic.Field(gt=0, le=1)]


class DataConfig(Section):
    train: tuple[Annotated[TrainSet, pydantic.BeforeValidator(_named)], ...] = pydantic.Field(
        min_length=1
    )
    """Folders of shards, or their URLs, to train on as one data set: names, or {path, weight}."""
    remote: RemoteConfig = RemoteConfig()
    """How data at a URL are downloaded and kept. The cache should hold two windows of `shuffle_shards`."""
    captions_per_image: int = pydantic.Field(default=1, ge=1)
    """Captions of each image in a step, in different languages if possible; fewer if it has fewer."""
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
    """Shards that are shuffled together. An epoch goes through the data in windows of at most so many shards,
    drawn at random anew each time, and reads within a window in any order. Up to 64 shards of the usual 5,000
    to 10,000 samples are thus shuffled in full; of larger data only one window is needed at a time, and
    batches of a set that is sorted by source have almost the composition of a full shuffle."""
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

    @property
    def weighs_languages(self) -> bool:
        """Whether images are drawn by the languages of their captions."""
        fields = (self.language_temperature, self.language_floor, self.language_cap)
        return any(field is not None for field in fields)

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
        if self.image_features and self.augmentation != Augmentation():
            raise ValueError(
                "`image_features` were made of unchanged images, so `augmentation` has no effect; remove "
                "one of the two"
            )
        return self
