"""One perturbation of the examples of one language.

Which texts change, by the kind of task:

    classification, similarity, multiple_choice   every text
    tagging     every word on its own, by noise inside words only (characters, keyboard, letter case):
                there are as many words as tags before and after; a short word may stay as it is
    span_qa     the question only
    retrieval   the text

A target never changes.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mmalign.core.config import kinds_beside
from mmalign.text.perturbations.sampling import Graded, text_generator
from mmalign.text.tasks.task import Example, Kind

if TYPE_CHECKING:
    PerturbationConfig = Graded
else:  # every perturbation of this folder
    PerturbationConfig = kinds_beside(__name__, "change")


def perturb(
    examples: Sequence[Example], kind: Kind, config: PerturbationConfig, seed: int, draw: int = 0
) -> list[Example] | None:
    """The examples with noisy texts; None: such noise does not exist for the language or the kind of task.

    It does not exist without a keyboard layout, list or dictionary of the language, without letter case in
    its script, and between words in a tagging task. The same arguments give the same noise, for any
    other examples (but for the alphabet of `characters`, which comes from all texts). A text that
    holds nothing to change stays as it is: it is no test of robustness.

    Raises:
        UserError: a folder of the configuration is missing, or a file in it is broken.
    """
    if not examples:
        return []  # their language is not known
    assert len({example.lang for example in examples}) == 1, "perturb one language at a time"
    # The context of a question stays, so that the answers still start where they did.
    open_texts = [one.texts[:1] if kind == "span_qa" else one.texts for one in examples]
    sample = [text for texts in open_texts for text in texts]
    change = config.change(sample, examples[0].lang, single_words=kind == "tagging")
    if change is None:
        return None
    noisy = []
    for example, texts in zip(examples, open_texts, strict=True):
        changed = [
            change(text, text_generator(seed, draw, example.id, i)) for i, text in enumerate(texts)
        ]
        noisy.append(replace(example, texts=(*changed, *example.texts[len(changed) :])))
    return noisy
