"""The functions that a notebook defines, so that tests can call them."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def page(name: str) -> SimpleNamespace:
    """Imports, constants (names in capitals) and functions of a notebook's code cells in a fresh
    namespace; nothing else of the notebook is executed, so that no profile is opened.

    Args: name: of the notebook, `08_ablation`."""
    namespace = {"__name__": name}
    for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            tree = ast.parse(cell.source)
            tree.body = [node for node in tree.body if _defines(node)]
            exec(compile(tree, f"{name}, {cell.id}", "exec"), namespace)
    return SimpleNamespace(**namespace)


def _defines(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        return all(isinstance(t, ast.Name) and t.id.isupper() for t in node.targets)
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef))
