"""Hashes of code that change when the code does something else, not when its words change.

`code_hash("beatssl.tasks.classify.predictor")` covers that function and every function, class and
constant of this package that it reaches by name, directly or through others: its static closure.
Files are read once in a process, as Python itself does.
Names are followed from their definitions, imports and annotations; nothing is imported. Methods are
not followed one by one: a class counts as a whole, wherever its name stands (`store: Store`).

Left out are settings (`beatssl.settings`: their values stand in the keys), the writing of files, and
registries: dictionaries from a name to what it stands for. Who picks an entry names its code too.
Docstrings, comments, layout, and the file in which a definition stands do not count.
"""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "beatssl"
ROOT = Path(__file__).resolve().parent.parent
NO_CODE = tuple(  # modules
    f"beatssl.{name}" for name in ("settings", "cache", "fingerprint", "progress")
)
REGISTRIES = ("METHODS", "LOSSES", "MEASURES", "READERS", "LISTERS", "SCORES", "TASKS")


class UnknownCodeError(LookupError):
    """A root of `code_hash` is no definition of the package: it was renamed or moved."""


def normalised(source: str) -> str:
    """The syntax tree of Python source as text, without docstrings, comments and layout."""
    return ast.dump(_without_words(ast.parse(source)))


def _without_words(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(getattr(body[0].value, "value", None), str):
                body[:1] = [] if len(body) > 1 else [ast.Pass()]
    return tree


def name_of(thing: Callable) -> str:
    """Dotted name of a function or class, as `code_hash` takes it."""
    return f"{thing.__module__}.{thing.__qualname__}"


@functools.cache
def code_hash(*roots: str, root: Path = ROOT) -> str:
    """Twelve hexadecimal digits of the closure of these definitions.

    Args:
        roots: dotted names, "beatssl.tasks.scores.thresholds".
        root: folder that holds the package.

    Raises:
        UnknownCodeError: no such definition.
    """
    texts = sorted(set(closure(*roots, root=root).values()))
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def closure(*roots: str, root: Path = ROOT) -> dict[str, str]:
    """Dotted name -> text of every definition that the roots reach; see `code_hash`."""
    found: dict[str, str] = {}
    todo = []
    for name in roots:
        place = _resolve(*name.rpartition(".")[::2], root)
        if place is None:
            raise UnknownCodeError(f"{name} is not defined in the package: name its new place")
        todo.append(place)
    while todo:
        module, name = todo.pop()
        if f"{module}.{name}" in found or module in NO_CODE or name in REGISTRIES:
            continue
        text, reached = _definition(module, name, root)
        found[f"{module}.{name}"] = text
        todo += reached
    return found


@dataclass
class _Module:
    """Top-level definitions of a file, and what its imports bind."""

    nodes: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> module, attribute


@functools.cache
def _file(module: str, root: Path) -> Path | None:
    path = root.joinpath(*module.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


@functools.cache
def _read(path: Path, module: str) -> _Module:
    found, is_package = _Module(), path.name == "__init__.py"
    for node in _without_words(ast.parse(path.read_text())).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.imports |= _bound(node, module, is_package)
        for name in _defined(node):
            found.nodes.setdefault(name, []).append(node)
    return found


def _defined(node: ast.stmt) -> set[str]:
    """Names that a top-level statement defines or changes (`EXPAND[0] = 1` changes EXPAND)."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = [*getattr(node, "targets", []), getattr(node, "target", None)]
    names = set()
    for target in filter(None, targets):
        for part in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
            while isinstance(part, ast.Subscript | ast.Attribute):
                part = part.value
            names |= {part.id} if isinstance(part, ast.Name) else set()
    blocks = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
    return names.union(*(_defined(inner) for block in blocks for inner in block))


def _bound(node: ast.stmt, module: str, is_package: bool) -> dict[str, tuple[str, str]]:
    """Names that an import of this package binds -> (module, attribute or "")."""
    bound = {}
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.split(".")[0] == PACKAGE and alias.asname:
                bound[alias.asname] = (alias.name, "")
        return bound
    base = node.module or ""
    if node.level:
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        base = ".".join([*parts, *([base] if base else [])])
    if base.split(".")[0] == PACKAGE:
        bound = {alias.asname or alias.name: (base, alias.name) for alias in node.names}
    return bound


def _resolve(module: str, name: str, root: Path) -> tuple[str, str] | None:
    """Where a name of a module is defined, through re-exports; a module itself has the name "";
    None where it is not of this package."""
    path = _file(module, root)
    if path is None:
        return None
    parsed = _read(path, module)
    if not name or name in parsed.nodes:
        return module, name
    if _file(f"{module}.{name}", root):
        return f"{module}.{name}", ""
    return _resolve(*parsed.imports[name], root) if name in parsed.imports else None


class _Names(ast.NodeTransformer):
    """Collects the definitions that a node names, and writes `metrics.auroc` as `auroc`, so that
    the text does not tell in which file it stands."""

    def __init__(self, module: str, parsed: _Module, imports: dict, root: Path):
        self.module, self.parsed, self.imports, self.root = module, parsed, imports, root
        self.reached: list[tuple[str, str]] = []

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id in self.imports:
            place = _resolve(*self.imports[node.value.id], self.root)
            if place and not place[1]:  # an attribute of a module
                target = _resolve(place[0], node.attr, self.root)
                if target and target[1]:
                    self.reached.append(target)
                    return ast.Name(node.attr, node.ctx)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self.imports:
            place = _resolve(*self.imports[node.id], self.root)
            if place and place[1]:
                self.reached.append(place)
        elif node.id in self.parsed.nodes:
            self.reached.append((self.module, node.id))
        return node

    def visit_ImportFrom(self, node: ast.stmt) -> ast.AST:
        return ast.Pass()

    visit_Import = visit_ImportFrom


@functools.cache
def _definition(module: str, name: str, root: Path) -> tuple[str, list[tuple[str, str]]]:
    """Text of one definition, and the definitions that it names."""
    path = _file(module, root)
    parsed = _read(path, module)
    texts, reached = [], []
    for node in parsed.nodes.get(name, []):
        imports = dict(parsed.imports)
        for inner in ast.walk(node):
            if isinstance(inner, ast.ImportFrom | ast.Import):  # inside a function
                imports |= _bound(inner, module, path.name == "__init__.py")
        names = _Names(module, parsed, imports, root)
        texts.append(ast.dump(names.visit(copy.deepcopy(node))))
        reached += names.reached
    return "\n".join(texts), reached
