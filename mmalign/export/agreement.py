"""Whether a folder that was just written holds the same model, in the words of the library that loads it.

    Encoder, folder -> vectors of some probes from both -> the largest difference of a component

This is the writer's own check, in this process, so that a format says by itself what it cannot hold;
`verify.py` repeats it on all probes in a clean process.
"""

from pathlib import Path

from mmalign.core.errors import UserError
from mmalign.export.probes import probe_images, probe_texts
from mmalign.export.verify import TOLERANCE, largest_difference
from mmalign.models.encoder import Encoder
from mmalign.models.load import Format, load_model

_EVERY = 7  # of the probes, one in so many: all scripts are not needed to see another pooling


def must_agree(encoder: Encoder, folder: Path, kind: Format, format_name: str) -> None:
    """Load the folder in its library and compare.

    Raises:
        UserError: it cannot be loaded, or gives other vectors.
    """
    loaded = load_model(str(folder), kind)
    texts, images = probe_texts()[::_EVERY], probe_images()[::_EVERY]
    pairs = {
        "text": (encoder.encode_texts(texts), loaded.encode_texts(texts)),
        "image": (encoder.encode_images(images), loaded.encode_images(images)),
    }
    for section, (ours_ND, theirs_ND) in pairs.items():
        difference = largest_difference(ours_ND, theirs_ND)
        if not difference <= TOLERANCE:  # also where it is not a number
            raise UserError(
                f"--format {format_name}: {kind} loads the {section} tower but computes other vectors "
                f"(off by {difference:.1g}), so it drops one of its options; export to another format instead"
            )
