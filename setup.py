"""The packages of the wheel and their data files; everything else is in pyproject.toml.

The YAML files of the top-level folders travel below mmalign/recipes/, where mmalign/core/resources.py finds
them. pyproject.toml can name a package in another folder, but then it must list all packages by hand.
"""

from setuptools import find_packages, setup

FOLDERS = ("data_recipes", "data_recipes/rules", "eval", "eval/prompts", "train", "train/finetune")
RECIPES = {f"mmalign.recipes.{folder.replace('/', '.')}": folder for folder in FOLDERS}

setup(
    packages=[*find_packages(include=["mmalign*"]), *RECIPES],
    package_dir=RECIPES,
    package_data={
        "mmalign": ["py.typed", "**/templates/*", "**/*.tsv", "**/*.txt", "**/*.yaml"],
        **{package: ["*.yaml", "*.json"] for package in RECIPES},
    },
)
