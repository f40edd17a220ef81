"""Imports run one way: micro -> _kernels -> runtime, algorithms -> functional -> layers -> everything else."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RANKS = {
    name: rank
    for rank, names in enumerate(
        [
            "_kernels geometry __version__",
            "runtime algorithms packing",
            "functional",
            "activations normalization",
            "layers losses optim",
            "folding models training",
        ]
    )
    for name in names.split()
}
TOP = 9  # models, integrations, the command line and the package itself may import all of the above
MODULES = sorted((ROOT / "fastconv").rglob("*.py"))


def module_name(path):
    """``fastconv/bench/cases.py`` -> ``fastconv.bench.cases``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path):
    """The absolute name of every module that the file imports, wherever in it the import stands."""
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            is_package = (ROOT / base.replace(".", "/")).is_dir()
            yield from (f"{base}.{alias.name}" if is_package else base for alias in node.names)


def rank(module):
    return RANKS.get(module.split(".")[1], TOP) if "." in module else TOP


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_run_one_way(path):
    upward = [
        name
        for name in imported_modules(path)
        if name.split(".")[0] == "fastconv" and rank(name) > rank(module_name(path))
    ]
    assert not upward


@pytest.mark.parametrize(("module", "allowed"), [("reference", {"numpy"}), ("geometry", set())])
def test_leaves_import_nothing_of_ours(module, allowed):
    roots = {name.split(".")[0] for name in imported_modules(ROOT / f"fastconv/{module}.py")}
    assert roots <= allowed | sys.stdlib_module_names


@pytest.mark.parametrize("path", sorted((ROOT / "src/micro").glob("*.[ch]")), ids=lambda path: path.name)
def test_micro_kernels_know_no_python_threads_or_allocation(path):
    assert not re.search(
        r"<(Python|omp|pthread)\.h>|\b(malloc|calloc|realloc|free)\(|#pragma omp", path.read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("path", sorted((ROOT / "src").glob("*.p[xy][xdi]")), ids=lambda path: path.name)
def test_extension_imports_nothing_of_ours(path):
    assert not re.search(r"^\s*(from|c?import)\s+(\.|fastconv)", path.read_text(encoding="utf-8"), re.MULTILINE)
