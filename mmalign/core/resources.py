"""The YAML files that come with mmalign, found by name from any folder.

    emoji_scenes                 -+
    train/emoji_scenes.yaml       +-> a file here, else the copy of the checkout or of the installed package
    eval/prompts                 -+

In a checkout `train/`, `eval/` and `data_recipes/` lie beside the package; in an installed package `setup.py`
has put them below `mmalign/recipes/`.
"""

from pathlib import Path

from mmalign.core.errors import UserError

_PACKAGE = Path(__file__).parents[1]
# The installed copies first: beside an installed package lie the folders of other packages.
_ROOTS = (_PACKAGE / "recipes", _PACKAGE.parent)


def find_yaml(argument: Path | str, folder: str) -> Path:
    """The YAML file that an argument of the command line or a field of another YAML file means.

    Args:
        folder: where files of this kind lie: `train`, `train/finetune`, `eval` or `data_recipes`.

    Raises:
        UserError: no such file, neither here nor among those that come with mmalign.
    """
    path = Path(argument)
    # An absolute path means no other file; whatever reads it reports that it is missing.
    if path.is_file() or path.is_absolute():
        return path
    named = [root / folder / f"{path}.yaml" for root in _ROOTS]
    for candidate in (*(root / path for root in _ROOTS), *named):
        if candidate.is_file():
            return candidate
    known = {found.stem for root in _ROOTS for found in (root / folder).glob("*.yaml")}
    raise UserError(
        f"{path}: no such file; give a path, or one of mmalign's own: {', '.join(sorted(known))}"
    )


def find_folder(argument: str) -> Path | None:
    """A folder that exists, or the one of this path that comes with mmalign; None where there is neither."""
    candidates = (Path(argument), *(root / argument for root in _ROOTS))
    return next((folder for folder in candidates if folder.is_dir()), None)
