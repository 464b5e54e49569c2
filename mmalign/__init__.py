"""mmalign: a text encoder whose languages share one space, with images as the pivot.

mmalign.load("runs/demo").encode_texts(["red apple, fox"])      -> (1, D) float32 of unit length
"""

from typing import TYPE_CHECKING

from mmalign.core.code_version import VERSION as __version__

if TYPE_CHECKING:
    from mmalign.models.encoder import DualModel

__all__ = ["__version__", "load"]


def load(name: str) -> "DualModel":
    """Any model: a run, an export in any format, or a model of another library, from a folder or the hub.

    Args:
        name: see `mmalign.models.load.load_model`, which lists the forms.

    Returns:
        A model that encodes texts and, where it has an image tower, encoded images.

    Raises:
        UserError: nothing there that can be loaded; the sentence says what was looked for.
    """
    # torch and transformers take seconds to import: the command line must not wait for them.
    from mmalign.models.load import load_model

    return load_model(str(name))
