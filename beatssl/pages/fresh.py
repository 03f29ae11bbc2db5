"""Is an executed page still what its notebook, settings and code would give?

A page stores a stamp: hashes of the notebook's source, of the profile's settings, and of every
module of this package that the notebook imports, directly or through other modules. Docstrings
and comments do not count. The stamp is compared part by part, so that a stale page is reported
with its reason.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import nbformat

from beatssl.fingerprint import normalised as _normalised
from beatssl.pages.plan import PER_RUN, Page, read_notebook, read_stages
from beatssl.profile import Profile
from beatssl.settings import ROOT, to_dict

PACKAGE = "beatssl"
LOOK = ("beatssl.report.figures",)  # how a page looks: decides no number
normalised = functools.lru_cache(maxsize=512)(_normalised)


def _hash(value: object) -> str:
    """Sixteen hexadecimal digits (sha256) of any JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=512)
def imported(source: str, module: str = "", is_package: bool = False) -> frozenset[str]:
    """Dotted names of this package that `source` imports, at any depth of the code.

    `from beatssl.x import y` gives both `beatssl.x` and `beatssl.x.y`: y may be a module.
    `module` is the name of the importing module, needed for relative imports.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                up = node.level - (1 if is_package else 0)
                parents = parts[: len(parts) - up]
                base = ".".join([*parents, *([base] if base else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(name for name in names if name.split(".")[0] == PACKAGE)


def _file(name: str, root: Path) -> Path | None:
    path = root.joinpath(*name.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def closure(sources: Iterable[str], root: Path = ROOT) -> dict[str, str]:
    """Module name -> hash, for all modules of the package that `sources` reach by imports.

    Static: names built at run time (importlib) are not seen.
    """
    todo = {name for source in sources for name in imported(source)}
    found: dict[str, str] = {}
    while todo:
        name = todo.pop()
        path = _file(name, root)
        if name in found or path is None:  # None: a function or class, its module is in the set
            continue
        source = path.read_text()
        found[name] = _hash(normalised(source))
        parents = name.split(".")[:-1]
        todo |= {".".join(parents[: i + 1]) for i in range(len(parents))}
        todo |= imported(source, name, path.name == "__init__.py")
    return dict(sorted(found.items()))


def code_cells(notebook: nbformat.NotebookNode) -> list[str]:
    """Sources of the code cells without the lines of IPython magics."""
    cells = [c.source.splitlines() for c in notebook.cells if c.cell_type == "code"]
    return ["\n".join(x for x in lines if not x.startswith(("%", "!"))) for lines in cells]


def _settings(page: Page, profile: Profile, after_runs: bool) -> dict[str, str]:
    groups = to_dict(profile)
    runs = groups.pop("runs")
    if page.run:
        groups["run"] = to_dict(page.run)
    elif after_runs:
        groups["runs"] = runs
    return {key: _hash(value) for key, value in groups.items()}


def stamp(page: Page, profile: Profile, root: Path = ROOT) -> dict:
    """What the page is made from, as hashes by part.

    The code of a page includes the modules that notebooks of earlier stages import, because their
    products (store, encoders) are what the page reads. `upstream` holds the code cells of the
    notebooks between the pretraining stage and the page, whose results it reads.
    """
    stages = read_stages(root / "runs.yml")
    first_runs = next((i for i, stage in enumerate(stages) if PER_RUN in stage), len(stages))
    names = [page.notebook] + [name for stage in stages[: page.stage] for name in stage]
    notebooks = {name: read_notebook(root / "notebooks" / f"{name}.ipynb") for name in names}
    own = notebooks[page.notebook]
    after_runs = page.stage > first_runs
    paper = root / "results" / "paper.csv"
    result = {
        "profile": profile.name,
        "notebook": page.notebook,
        "parameters": page.parameters,
        "source": _hash([[cell.cell_type, cell.source] for cell in own.cells]),
        "settings": _settings(page, profile, after_runs),
    }
    code = closure((s for nb in notebooks.values() for s in code_cells(nb)), root)
    result["look"] = {name: code.pop(name) for name in LOOK if name in code}
    result["code"] = code
    if after_runs:
        between = [name for stage in stages[first_runs : page.stage] for name in stage]
        result["upstream"] = {
            name: _hash([normalised(cell) for cell in code_cells(notebooks[name])])
            for name in between
        }
    if after_runs and paper.is_file():
        result["paper"] = hashlib.sha256(paper.read_bytes()).hexdigest()[:16]
    return result


def code_name(stamp: dict) -> str:
    """Eight digits that name the code that a page was made by; `?` where it has no stamp."""
    return _hash(stamp["code"])[:8] if "code" in stamp else "?"


def data_fingerprint(profile: Profile) -> str | None:
    """Content hash of the prepared store, or None where this machine has no store."""
    manifest = profile.work / "store" / "manifest.json"
    if not manifest.is_file():
        return None
    return str(json.loads(manifest.read_text()).get("fingerprint") or "") or None


def stale(old: dict, new: dict, data: str | None, look: bool = True) -> list[str]:
    """Reasons why a page with stamp `old` is not what `new` would give; empty when fresh.

    `data` is the fingerprint of the store at hand; None leaves the data out of the comparison.
    `look` says whether a change of the figures' code counts: it changes no number, so a page that
    took hours is executed again for it where it can be, but is not refused.
    """
    if not old:
        return ["stale: made by hand, it has no stamp"]
    reasons = []
    if old.get("source") != new["source"] or old.get("notebook") != new["notebook"]:
        reasons.append("its notebook changed")
    if old.get("parameters") != new["parameters"]:
        reasons.append("its parameters changed")
    if old.get("paper") != new.get("paper"):
        reasons.append("results/paper.csv changed")
    if data and old.get("data") and old["data"] != data:
        reasons.append("the prepared store holds other data")
    for part in ("settings", "code", "upstream", *(["look"] if look else [])):
        before, now = old.get(part, {}), new.get(part, {})
        changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        if changed:
            reasons.append(f"{part} changed: {', '.join(changed)}")
    return [f"stale: {reason}" for reason in reasons]
