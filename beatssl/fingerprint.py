"""Hashes of code that change when the code does something else, not when its words change.

`code_hash("beatssl.tasks.classify.predictor")` covers that function and every function, class and
constant of this package that it reaches by name, directly or through others: its static closure.
Files are read once in a process, as Python itself does; `by_module` reads them as they are now.
Names are followed from their definitions, imports and annotations; nothing is imported. Methods are
not followed one by one: a class counts as a whole, wherever its name stands (`store: Store`).

Left out are settings (`beatssl.settings`: their values stand in the keys), the writing of files,
and registries: dictionaries from a name to what it stands for. Who picks an entry names its code.
Docstrings, comments, layout, and the file in which a definition stands do not count.
"""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from importlib.util import resolve_name
from pathlib import Path

PACKAGE = "beatssl"
ROOT = Path(__file__).resolve().parent.parent
NO_CODE = ("beatssl.settings", "beatssl.cache", "beatssl.fingerprint", "beatssl.progress")
REGISTRIES = ("METHODS", "ENCODERS", "READERS", "LISTERS", "SCORES", "TASKS")
Place = tuple[str, str]  # module, name of a definition in it; "" is the module itself


class UnknownCodeError(LookupError):
    """A root of `code_hash` is no definition of the package: it was renamed or moved."""


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
    return _digest(closure(*roots, root=root).values())


def closure(*roots: str, root: Path = ROOT) -> dict[str, str]:
    """Dotted name -> text of every definition that the roots reach; see `code_hash`."""
    package = _package(root)
    places = {name: package.resolve(*name.rpartition(".")[::2]) for name in roots}
    for name, place in places.items():
        if place is None:
            raise UnknownCodeError(f"{name} is not defined in the package: name its new place")
    texts = package.follow(places.values(), left_out=REGISTRIES)
    return {".".join(place): text for place, text in texts.items()}


def by_module(source: str, root: Path = ROOT) -> dict[str, str]:
    """Module -> hash of what code outside the package reaches in it, entries of registries too."""
    state = tuple((p, p.stat().st_mtime_ns) for p in sorted((root / PACKAGE).rglob("*.py")))
    package, texts = _package(root, state), defaultdict(list)
    _, reached = _definition(package, _Module(source, package=""), "", "")
    for (module, _), text in package.follow(reached).items():
        texts[module].append(text)
    return {module: _digest(texts[module]) for module in sorted(texts)}


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(set(texts))).encode()).hexdigest()[:12]


def normalised(source: str) -> str:
    """The syntax tree of Python source as text, without docstrings, comments and layout."""
    return ast.dump(_without_words(ast.parse(source)))


def _without_words(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body[:1] = [] if len(node.body) > 1 else [ast.Pass()]
    return tree


class _Module:
    """Statements of a file by the name that they define ("": all), and what its imports bind."""

    def __init__(self, source: str, package: str):
        tree = _without_words(ast.parse(source))
        self.nodes: dict[str, list[ast.stmt]] = {"": tree.body}
        self.imports: dict[str, Place] = {}
        for node in tree.body:
            for name in _defined(node):
                self.nodes.setdefault(name, []).append(node)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self.imports |= {a.asname or a.name: (a.name, "") for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                module = resolve_name("." * node.level + (node.module or ""), package)
                self.imports |= {a.asname or a.name: (module, a.name) for a in node.names}


def _defined(node: ast.stmt) -> set[str]:
    """Names that a top-level statement defines or changes (`EXPAND[0] = 1` changes EXPAND)."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    names = set()
    for target in [*getattr(node, "targets", []), getattr(node, "target", None)]:
        for part in getattr(target, "elts", [target]):
            while isinstance(part, ast.Subscript | ast.Attribute):
                part = part.value
            names |= {part.id} if isinstance(part, ast.Name) else set()
    inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return names.union(*map(_defined, inner))


class _Package:
    """The modules of the package in a folder, all read at once."""

    def __init__(self, root: Path, state: tuple = ()):  # state: of the files, for the cache alone
        self.modules: dict[str, _Module] = {}
        for path in (root / PACKAGE).rglob("*.py"):
            *folders, file = path.relative_to(root).with_suffix("").parts
            name = ".".join(folders if file == "__init__" else [*folders, file])
            self.modules[name] = _Module(path.read_text(), package=".".join(folders))

    def resolve(self, module: str, name: str) -> Place | None:
        """Where a name of a module is defined, through re-exports; None outside the package."""
        if module not in self.modules:
            return None
        if name in self.modules[module].nodes:
            return module, name
        if f"{module}.{name}" in self.modules:
            return f"{module}.{name}", ""
        bound = self.modules[module].imports.get(name)
        return self.resolve(*bound) if bound else None

    def follow(self, places: Iterable[Place], left_out: tuple[str, ...] = ()) -> dict[Place, str]:
        """Texts of the definitions at these places and of all that they reach."""
        texts: dict[Place, str] = {}
        todo = list(places)
        while todo:
            place = module, name = todo.pop()
            if place not in texts and module not in NO_CODE and name not in left_out:
                texts[place], reached = _definition(self, self.modules[module], module, name)
                todo += reached
        return texts


_package = functools.cache(_Package)


@functools.cache
def _definition(
    package: _Package, parsed: _Module, module: str, name: str
) -> tuple[str, tuple[Place, ...]]:
    """Text of one definition, and the places of the definitions that it names."""
    names = _Names(package, parsed, module)
    texts = [ast.dump(names.visit(copy.deepcopy(node))) for node in parsed.nodes[name]]
    return "\n".join(texts), tuple(names.reached)


class _Names(ast.NodeTransformer):
    """Collects the definitions that a node names, and writes `metrics.auroc` as `auroc`, so that
    the text does not tell in which file it stands."""

    def __init__(self, package: _Package, parsed: _Module, module: str):
        self.package, self.parsed, self.module = package, parsed, module
        self.reached: list[Place] = []

    def place(self, name: str) -> Place | None:
        bound = self.parsed.imports.get(name)
        if bound is None and self.module and name in self.parsed.nodes:
            return self.module, name
        return self.package.resolve(*bound) if bound else None

    def visit_Name(self, node: ast.Name) -> ast.AST:
        place = self.place(node.id)
        self.reached += [place] if place and place[1] else []
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        place = self.place(ast.unparse(node.value))
        target = self.package.resolve(place[0], node.attr) if place and not place[1] else None
        if target is None:
            return self.generic_visit(node)
        self.reached.append(target)
        return ast.Name(node.attr, node.ctx)
