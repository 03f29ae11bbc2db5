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

import ast
import copy
import functools
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from importlib.util import resolve_name
from pathlib import Path
from textwrap import dedent

from beatssl.settings import ROOT, config_hash

NO_CODE = ("beatssl.settings", "beatssl.cache", "beatssl.fingerprint", "beatssl.progress")
REGISTRIES = ("METHODS", "LOSSES", "MEASURES", "LAYOUTS", "SCORES", "TASKS")
Place = tuple[str, str]  # module, name of a definition in it; "" is the module itself


class UnknownCodeError(LookupError):
    """A root of `code_hash` is no definition of the package: it was renamed or moved."""


def name_of(thing: Callable) -> str:
    """Dotted name of a function or class, as `code_hash` takes it."""
    return f"{thing.__module__}.{thing.__qualname__}"


def code_of(*things: Callable, root: Path = ROOT) -> str:
    """Twelve hexadecimal digits of the code of functions and classes.

    Those of the package count with all that they reach (`code_hash`); what is defined elsewhere, in
    a test or a notebook, counts by its own source alone.

    Args: root: folder that holds the package.

    Raises:
        UnknownCodeError: no such definition in the package.
        OSError: the source of a thing from elsewhere is not at hand.
    """
    own = [name for name in map(name_of, things) if name.startswith("beatssl.")]
    others = [thing for thing in things if name_of(thing) not in own]
    sources = sorted(normalised(dedent(inspect.getsource(thing))) for thing in others)
    code = code_hash(*own, root=root)
    return config_hash(code, sources) if sources else code


@functools.cache
def code_hash(*roots: str, root: Path = ROOT) -> str:
    """Twelve hexadecimal digits of the closure of these definitions.

    Args:
        roots: dotted names, "beatssl.tasks.scores.thresholds".
        root: folder that holds the package.

    Raises:
        UnknownCodeError: no such definition.
    """
    return config_hash(sorted(set(closure(*roots, root=root).values())))


def closure(*roots: str, root: Path = ROOT) -> dict[str, str]:
    """Dotted name -> text of every definition that the roots reach; see `code_hash`."""
    package, places = _package(root), []
    for name in roots:
        module, _, own = name.rpartition(".")
        places.append(package.resolve(package.modules.get(module), own))
        if places[-1] is None:
            raise UnknownCodeError(f"{name} is not defined in the package: name its new place")
    texts = package.follow(places, left_out=REGISTRIES)
    return {".".join(place): text for place, text in texts.items()}


def by_module(sources: Iterable[str], root: Path = ROOT) -> dict[str, str]:
    """Module -> hash of what code outside the package reaches in it, entries of registries too."""
    state = tuple((p, p.stat().st_mtime_ns) for p in sorted((root / "beatssl").rglob("*.py")))
    return dict(_by_module(_package(root, state), *sources))


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

    def __init__(self, source: str, name: str = "", folder: str = ""):
        tree = _without_words(ast.parse(source))
        self.name, self.nodes = name, defaultdict(list, {"": tree.body})
        self.imports: dict[str, Place] = {}
        for node in tree.body:
            for defined in _defined(node):
                self.nodes[defined].append(node)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self.imports |= {a.asname or a.name: (a.name, "") for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                module = resolve_name("." * node.level + (node.module or ""), folder)
                self.imports |= {a.asname or a.name: (module, a.name) for a in node.names}


def _defined(node: ast.stmt) -> set[str]:
    """Names that a top-level statement defines or changes (`EXPAND[0] = 1` changes EXPAND)."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = [*getattr(node, "targets", []), getattr(node, "target", ast.Tuple([]))]
    parts = [part for target in targets for part in getattr(target, "elts", [target])]
    names = {re.search(r"\w+", ast.unparse(part))[0] for part in parts}
    inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return names.union(*map(_defined, inner))


class _Package:
    """The modules of the package in a folder, all read at once."""

    def __init__(self, root: Path, state: tuple = ()):  # state: of the files, for the cache alone
        self.modules: dict[str, _Module] = {}
        for path in (root / "beatssl").rglob("*.py"):
            folder = ".".join(path.parent.relative_to(root).parts)
            name = folder if path.stem == "__init__" else f"{folder}.{path.stem}"
            if name not in NO_CODE:
                self.modules[name] = _Module(path.read_text(), name, folder)

    def resolve(self, module: _Module | None, name: str) -> Place | None:
        """Where a name of a module (`auroc`, `scores.auroc`) is defined, through re-exports; a
        module itself has the name ""; None outside the package."""
        if module is None or name in module.nodes:
            return (module.name, name) if module else None
        if f"{module.name}.{name}" in self.modules:
            return f"{module.name}.{name}", ""
        if name in module.imports:
            source, attribute = module.imports[name]
            return self.resolve(self.modules.get(source), attribute)
        owner, _, attribute = name.rpartition(".")
        place = self.resolve(module, owner) if owner else None
        return self.resolve(self.modules[place[0]], attribute) if place and not place[1] else None

    def follow(self, places: Iterable[Place], left_out: tuple[str, ...] = ()) -> dict[Place, str]:
        """Texts of the definitions at these places and of all that they reach."""
        texts: dict[Place, str] = {}
        todo = list(places)
        while todo:
            place = module, name = todo.pop()
            if place not in texts and module in self.modules and name not in left_out:
                texts[place], reached = _definition(self, self.modules[module], name)
                todo += reached
        return texts


_package = functools.cache(_Package)


@functools.cache
def _definition(package: _Package, module: _Module, name: str) -> tuple[str, list[Place]]:
    """Text of one definition, and the places of the definitions that it names."""
    names = _Names(package, module)
    texts = [ast.dump(names.visit(copy.deepcopy(node))) for node in module.nodes[name]]
    return "\n".join(texts), names.reached


@functools.cache
def _by_module(package: _Package, *sources: str) -> dict[str, str]:
    """See `by_module`: most pages have the same sources."""
    texts = defaultdict(list)
    places = [place for source in sources for place in _reached(package, source)]
    for (module, _), text in package.follow(places).items():
        texts[module].append(text)
    return {module: config_hash(sorted(texts[module])) for module in sorted(texts)}


@functools.cache
def _reached(package: _Package, source: str) -> list[Place]:
    """Places of the definitions that code outside the package names."""
    return _definition(package, _Module(source), "")[1]


class _Names(ast.NodeTransformer):
    """Collects the definitions that a node names, and writes `scores.auroc` as `auroc`, so that the
    text does not tell in which file it stands."""

    def __init__(self, package: _Package, module: _Module):
        self.package, self.module = package, module
        self.reached: list[Place] = []

    def visit(self, node: ast.AST) -> ast.AST:
        named = isinstance(node, ast.Name | ast.Attribute)
        place = self.package.resolve(self.module, ast.unparse(node)) if named else None
        if not place or not place[1]:
            return self.generic_visit(node)
        self.reached.append(place)
        return ast.Name(place[1], node.ctx)
