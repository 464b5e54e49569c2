"""One YAML file is one study: which towers, which tasks, which methods, which seeds."""

from typing import Any

from pydantic import Field, model_validator

from mmalign.core.config import Section, Seeds


class TowerConfig(Section):
    """A text tower of the grid: trained by the study from a run file, or an existing model."""

    run: str | None = None
    """Run YAML; the study trains it, once for each pretraining seed, unless that was done before."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Fields of the run that this tower changes, dotted: `{objective.kind: masked_language_model}`."""
    path: str | None = None
    """A trained model instead: what `mmalign finetune --model` takes. It has no pretraining seeds."""
    untrained: bool = False
    """The run's tower as it was before its first step."""
    supervision: str
    """What this tower has seen, in words: shown beside its numbers."""

    @model_validator(mode="after")
    def _one_source(self) -> "TowerConfig":
        if (self.run is None) == (self.path is None):
            raise ValueError("give exactly one of `run` and `path`")
        if self.set and self.run is None:
            raise ValueError("`set` changes fields of a `run`, which is missing")
        if self.untrained and self.run is None:
            raise ValueError("`untrained` needs a `run`, which knows its model before training")
        return self


class TaskEntry(Section):
    """A fine-tuning of the grid, with fields that differ from its file."""

    finetune: str
    """Fine-tuning YAML, of a task or of a lexicon."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Fields that this entry changes, dotted: `{task.name: bitext_centred, task.centred: true}`."""


class HeadlineConfig(Section):
    """The comparison that the study is about; it is repeated over several pretraining seeds."""

    tower: str
    """The tower of interest."""
    against: tuple[str, ...] = ()
    """The towers that it is compared with; none: the study compares methods alone."""
    method: str = "plain"


class StudyConfig(Section):
    name: str
    question: str
    """What the study asks, as a sentence; the first line of the report."""
    towers: dict[str, TowerConfig] = Field(min_length=1)
    tasks: tuple[str | TaskEntry, ...] = Field(min_length=1)
    """Fine-tuning YAMLs, of a task or of a lexicon; each with its plain way of training."""
    methods: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name -> fields of the fine-tuning that it changes, dotted: `{repeats: 4}`, `{method.kind: pgd}`."""
    only: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Method -> tasks (by name) that it is used with; a method that is not listed is used with all."""
    compare_with: dict[str, str] = Field(default_factory=dict)
    """Method -> the method that it is compared with; the headline's where it is not listed."""
    seeds: Seeds
    """Fine-tuning seeds of every cell."""
    pretraining_seeds: Seeds = (0,)
    """The first is that of the whole grid; the headline is repeated over all."""
    headline: HeadlineConfig

    @model_validator(mode="after")
    def _names_are_known(self) -> "StudyConfig":
        for name in (*self.towers, *self.methods):
            if "/" in name:  # metrics are named <tower>/<method>/...
                raise ValueError(f"`{name}`: the names of towers and methods have no `/`")
        for tower in (self.headline.tower, *self.headline.against):
            if tower not in self.towers:
                raise ValueError(f"headline: there is no tower `{tower}`")
        named = [self.headline.method, *self.only, *self.compare_with, *self.compare_with.values()]
        for method in named:
            if method not in self.methods:
                raise ValueError(f"there is no method `{method}`")
        return self
