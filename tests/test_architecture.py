"""Limits of the code base: sizes of files and functions, and no Python in the folders of YAML files."""

import ast
import re
import subprocess
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "mmalign").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NOUNS = ("train", "eval", "data_recipes", "docker")
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60
LONGER = {("mmalign/training/loop.py", "train"): 80}  # the training loop in one piece
# Written in parts, so that this file does not match its own patterns.
FOREIGN = re.compile(
    "|".join(
        (
            r"(?<![\w.])/" + r"(work|tmp|root)/",  # paths of a particular machine
            r"index-" + r"url",  # package registries: they depend on the machine
            r"trusted-" + r"host",
            r"python" + r"hosted\.org",
            r"arti" + r"factory",
            r"https?://\d+\.\d+\.\d+\.\d+",
        )
    )
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def project_files() -> list[Path]:
    """Tracked files, and untracked files that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not in a git checkout")
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


def test_there_is_something_to_look_at() -> None:
    assert len(PACKAGE) > 20
    assert len(TESTS) > 10


@pytest.mark.parametrize("path", [*PACKAGE, *TESTS], ids=relative)
def test_a_file_is_small_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "has no docstring"
    assert len(text.splitlines()) <= MOST_LINES


def test_functions_are_small() -> None:
    lengths = {
        (relative(path), node.name): (node.end_lineno or 0) - node.lineno + 1
        for path in (*PACKAGE, *TESTS)
        for node in functions(path)
    }
    most = {name: LONGER.get(name, MOST_LINES_OF_A_FUNCTION) for name in lengths}
    assert {name: n for name, n in lengths.items() if n > most[name]} == {}


@pytest.mark.parametrize("folder", NOUNS)
def test_nouns_hold_no_python(folder: str) -> None:
    assert [relative(path) for path in (ROOT / folder).rglob("*.py")] == []


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for path in project_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # an image or another binary file
        places = (f"{relative(path)}:{n}: {line}" for n, line in enumerate(lines, start=1))
        found += [place[:200] for place in places if FOREIGN.search(place)]
    assert found == []


def test_constraints_name_packages_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    wrong = [line for line in lines if line and not re.fullmatch(r"#.*|[\w.-]+==[\w.+!]+", line)]
    assert wrong == []


def test_every_word_that_the_check_looks_for_is_found() -> None:
    for line in (
        "see /" + "work/x",
        "'/" + "tmp/x'",
        "--extra-index-" + "url x",
        "http://" + "10.0.0.1",
    ):
        assert FOREIGN.search(line), line
    assert not FOREIGN.search("data/tmp/x ../work/y https://example.org/home/z")


def imported_modules(path: Path, known: set[str]) -> Iterator[str]:
    """The modules of the package that a file imports, also within functions; not for type checking alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in known else node.module for name in names)


def test_no_module_imports_itself_through_others() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE
    }
    graph = {name: set(imported_modules(path, set(modules))) for name, path in modules.items()}
    # A package whose modules register with it (mmalign.cli) imports them, and they import from it.
    for name, imported in graph.items():
        imported -= {parent for parent in imported if name.startswith(f"{parent}.")}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
