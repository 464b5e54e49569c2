"""The head that a task needs: one class per kind of task."""

from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.causality.config import CausalityConfig
from mmalign.text.heads import features
from mmalign.text.heads.base import TaskModel
from mmalign.text.heads.causality import CausalityModel
from mmalign.text.heads.features import ON_FEATURES, Pairs
from mmalign.text.heads.ranking import RetrievalModel
from mmalign.text.heads.spans import SpanModel
from mmalign.text.heads.tagging import TaggingModel
from mmalign.text.tasks.task import Task


def build_model(
    tower: TextEncoder,
    task: Task,
    pairs: Pairs,
    hidden: int | None,
    causality: CausalityConfig | None = None,
) -> TaskModel:
    """A model of the task's kind with an untrained head.

    Args:
        pairs, hidden: of heads on features (see `FeatureHead`).
        causality: of event causality; None: its defaults.

    Raises:
        UserError: `hidden` where the head has no such layer.
    """
    if hidden is not None and task.kind not in ON_FEATURES:
        kinds = ", ".join(ON_FEATURES)
        raise UserError(f"task `{task.name}`: `hidden` is for {kinds}, not {task.kind}; drop it")
    match task.kind:
        case "classification":
            is_pair = len(task.train[0].texts) == 2
            return features.ClassificationModel(
                tower, task.labels, pairs if is_pair else None, hidden
            )
        case "similarity":
            return features.SimilarityModel(tower, pairs, hidden)
        case "multiple_choice":
            return features.ChoiceModel(tower, pairs, hidden)
        case "tagging":
            return TaggingModel(tower, task.labels)
        case "span_qa":
            return SpanModel(tower)
        case "retrieval":
            return RetrievalModel(tower, task.candidates)
        case "event_causality":
            return CausalityModel(tower, causality or CausalityConfig())
