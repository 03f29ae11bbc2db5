"""What pages the book has and what a notebook must look like to become one.

A *page* is one papermill execution of a notebook of `notebooks/`. Which notebooks run, and in which
order, stands in `runs.yml`.
"""

import re
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill

from beatssl.profile import Profile
from beatssl.settings import ROOT, ConfigError, from_dict, read_yaml

PER_RUN = "05_pretraining"  # executed once for every run of the profile
RUN_NAMES = ("method", "rhythm", "beat", "exponent", "variant", "seed")  # what names a run
KINDS = {"str": str, "int": int, "float": float, "bool": bool}


@dataclass(frozen=True)
class Page:
    """One execution of one notebook: `name` is the file name of the executed page."""

    name: str
    notebook: str
    stage: int
    before: tuple[str, ...]  # notebooks of the stages before
    parameters: dict
    profile: Profile
    run: Any = None  # settings of the run that a page of PER_RUN shows
    root: Path = ROOT

    @property
    def file(self) -> str:
        """Its place in the book, without the ending."""
        return f"runs/{self.profile.name}/{self.name}"

    @property
    def path(self) -> Path:
        """Where the executed page stands."""
        return self.root / "book" / f"{self.file}.ipynb"


def template(name: str, root: Path, **values: object) -> str:
    """Prose of the book with these values in it."""
    return (root / "book" / "_templates" / f"{name}.md").read_text().format(**values)


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook in format 4.

    Raises:
        ConfigError: the file is absent or is no notebook.
    """
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises several unrelated types
        raise ConfigError(f"{path.name} is not a readable notebook of runs.yml: {error}") from error


def declared_parameters(path: Path) -> dict[str, type]:
    """Names and annotated types in the cell tagged `parameters`.

    Raises:
        ConfigError: the notebook does not open with exactly one title, has not exactly one such
            cell, or a parameter in it without a type.
    """
    name, cells = path.stem, read_notebook(path).cells
    opening = cells[0].source if cells and cells[0].cell_type == "markdown" else ""
    if len(re.findall(r"^# +.+$", opening, re.M)) != 1:
        raise ConfigError(f"{name}: the first cell must be markdown with exactly one '# Title'")
    tagged = sum("parameters" in cell.metadata.get("tags", []) for cell in cells)
    if tagged != 1:
        raise ConfigError(f"{name}: {tagged} cells are tagged 'parameters', need exactly one")
    found = papermill.inspect_notebook(path)
    kinds = {key: KINDS.get(found[key]["inferred_type_name"]) for key in found}
    for key in [key for key in kinds if kinds[key] is None]:
        raise ConfigError(f"{name}: parameter {key!r} needs a type, one of {', '.join(KINDS)}")
    return kinds


def checked_parameters(values: dict, kinds: dict[str, type], notebook: str) -> dict:
    """`values` with the declared types (an int is taken where a float is declared).

    Raises:
        ConfigError: a name that the notebook does not declare, or a value of another type.
    """
    declared = make_dataclass("Parameters", [(name, kinds[name], None) for name in kinds])
    checked = from_dict(declared, values, notebook)
    return {name: getattr(checked, name) for name in values}


def read_stages(path: Path, profile: str) -> list[list[str]]:
    """`stages` of runs.yml, those of the profile where it has its own: lists of notebook names; a
    stage starts when the one before is done. The word `collect` is a stage of its own, without
    notebooks: an empty list. It writes results/<profile>.csv."""
    content = read_yaml(path)
    own = ((content.get("profiles") or {}).get(profile) or {}).get("stages")
    entries = own or content.get("stages") or [None]
    stages = [[] if entry == "collect" else entry for entry in entries]
    if not all(isinstance(stage, list) for stage in stages):
        raise ConfigError(f"{path.name}: 'stages' must be a list of lists of notebook names")
    names = [name for stage in stages for name in stage]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"{path.name}: notebook {twice[0]} stands in 'stages' twice")
    return stages


def plan(profile: Profile, root: Path = ROOT) -> list[Page]:
    """All pages of a profile in the order of `stages`, each with its checked parameters: of a run
    those that name it; its other settings are the profile's.

    Raises:
        ConfigError: an absent or malformed notebook, an unknown or mistyped parameter.
    """
    pages, trained = [], [run for run in profile.runs if run.has_encoder]
    stages = read_stages(root / "runs.yml", profile.name)
    for number, stage in enumerate(stages):
        before = tuple(name for earlier in stages[:number] for name in earlier)
        for notebook in stage:
            kinds = declared_parameters(root / "notebooks" / f"{notebook}.ipynb")
            for run in trained if notebook == PER_RUN else [None]:
                named = [key for key in RUN_NAMES if key in kinds and hasattr(run, key)]
                values = {"profile": profile.name, **{key: getattr(run, key) for key in named}}
                values = checked_parameters(values, kinds, notebook)
                name = f"{notebook}--{run.run_id}" if run else notebook
                pages.append(Page(name, notebook, number, before, values, profile, run, root))
    return pages
