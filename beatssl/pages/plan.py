"""What pages the book has and what a notebook must look like to become one.

A *page* is one papermill execution of a notebook of `notebooks/`, scrubbed of everything that
differs between two identical runs. Which notebooks run, and in which order, stands in `runs.yml`.
"""

from __future__ import annotations

import ast
import base64
import dataclasses
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml
from PIL import Image

from beatssl.methods import make_run
from beatssl.methods.base import RunSettings
from beatssl.profile import Profile
from beatssl.settings import ROOT, ConfigError, work_dir

PER_RUN = "05_pretraining"  # executed once for every run of the profile
COLLECT = "collect"  # the stage that writes results/<profile>.csv; no notebook
KINDS = {"str": str, "int": int, "float": float, "bool": bool}
ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")


@dataclass(frozen=True)
class Page:
    """One execution of one notebook: `name` is the file name of the executed page."""

    name: str
    notebook: str
    stage: int
    parameters: dict
    run: RunSettings | None = None


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook in format 4.

    Raises:
        ConfigError: the file is absent or is no notebook.
    """
    if not path.is_file():
        raise ConfigError(f"notebook {path.name} named in runs.yml is not in {path.parent.name}/")
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises several unrelated types
        raise ConfigError(f"{path.name} is not a readable notebook: {error}") from error


def title(notebook: nbformat.NotebookNode, name: str) -> str:
    """The one `# Title` that must open the first cell.

    Raises:
        ConfigError: the first cell is not markdown, or holds no title or several.
    """
    first = notebook.cells[0] if notebook.cells else None
    found = re.findall(r"^# +(.+)$", first.source, re.M) if first else []
    if first is None or first.cell_type != "markdown" or len(found) != 1:
        raise ConfigError(f"{name}: the first cell must be markdown with exactly one '# Title'")
    return found[0].strip()


def declared_parameters(notebook: nbformat.NotebookNode, name: str) -> dict[str, type]:
    """Names and types in the cell tagged `parameters` (annotation, else the default's type).

    Raises:
        ConfigError: not exactly one such cell, or something else than `name: type = literal`.
    """
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ConfigError(f"{name}: {len(cells)} cells are tagged 'parameters', need exactly one")
    kinds: dict[str, type] = {}
    for line in ast.parse(cells[0].source).body:
        target = getattr(line, "target", None) or (getattr(line, "targets", None) or [None])[0]
        try:
            default = ast.literal_eval(line.value)
            kind = KINDS.get(getattr(getattr(line, "annotation", None), "id", ""), type(default))
            kinds[target.id] = kind
        except (AttributeError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{name}: the parameters cell may only hold lines 'name: type = literal', "
                f"not {ast.unparse(line)!r}"
            ) from error
    return kinds


def checked_parameters(values: dict, kinds: dict[str, type], name: str) -> dict:
    """`values` with the declared types (an int is taken where a float is declared).

    Raises:
        ConfigError: a name that the notebook does not declare, or a value of another type.
    """
    result = {}
    for key, value in values.items():
        if key not in kinds:
            known = ", ".join(kinds)
            raise ConfigError(f"{name}: no parameter {key!r} in its parameters cell ({known})")
        kind = kinds[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            hint = ""
            if kind in (int, float) and isinstance(value, str):
                hint = "; YAML reads 1e-3 as text, write 1.0e-3"
            raise ConfigError(
                f"{name}: parameter {key!r} is declared {kind.__name__}, got {value!r}{hint}"
            )
        result[key] = value
    return result


def _run_parameters(run: RunSettings, kinds: dict[str, type], name: str) -> dict:
    """The settings of a run that the notebook declares; an undeclared one must be the default."""
    default, given = make_run(), {}
    for setting in dataclasses.fields(run):
        value = getattr(run, setting.name)
        if setting.name in kinds:
            given[setting.name] = value
        elif value != getattr(default, setting.name):
            raise ConfigError(
                f"{name}: run {run.run_id} sets {setting.name}={value!r}, but the parameters cell "
                f"does not declare {setting.name!r}: the page would run with the default"
            )
    return given


def read_stages(path: Path) -> list[list[str]]:
    """`stages` of runs.yml: lists of notebook names; a stage starts when the one before is done.
    The word `collect` is a stage of its own, without notebooks: an empty list."""
    stages = yaml.safe_load(path.read_text()).get("stages")
    if isinstance(stages, list):
        stages = [[] if stage == COLLECT else stage for stage in stages]
    right = isinstance(stages, list) and all(
        isinstance(stage, list) and all(isinstance(name, str) for name in stage) for stage in stages
    )
    if not right:
        raise ConfigError(f"{path.name}: 'stages' must be a list of lists of notebook names")
    names = [name for stage in stages for name in stage]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path.name}: notebook {twice[0]} stands in 'stages' twice")
    return stages


def plan(profile: Profile, root: Path = ROOT) -> list[Page]:
    """All pages of a profile in the order of `stages`, each with its checked parameters.

    Raises:
        ConfigError: an absent or malformed notebook, an unknown or mistyped parameter.
    """
    pages = []
    trained = [run for run in profile.runs if run.has_encoder]
    for number, stage in enumerate(read_stages(root / "runs.yml")):
        for name in stage:
            notebook = read_notebook(root / "notebooks" / f"{name}.ipynb")
            title(notebook, name)
            kinds = declared_parameters(notebook, name)
            for run in trained if name == PER_RUN else (None,):
                values = {"profile": profile.name}
                values |= _run_parameters(run, kinds, name) if run else {}
                page = f"{name}--{run.run_id}" if run else name
                values = checked_parameters(values, kinds, name)
                pages.append(Page(page, name, number, values, run))
    return pages


def _mask_paths(text: str, root: Path) -> str:
    """Replace this machine's folders, so that a page reads the same wherever it was run."""
    known = {str(root): ".", str(work_dir()): "work", str(Path.home()): "~"}
    if os.environ.get("BEATSSL_DATA"):
        known[os.environ["BEATSSL_DATA"].rstrip("/")] = "$BEATSSL_DATA"
    for folder in sorted(known, key=len, reverse=True):
        if len(folder) > 1:
            text = re.sub(re.escape(folder) + r"(?![\w-])", lambda _: known[folder], text)
    return text


def smaller_png(encoded: str) -> str:
    """The same picture with at most 256 colours, a third of the bytes: the pages are committed.

    Args: encoded: base64 of a PNG file. A picture that would not become smaller is kept."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    out = io.BytesIO()
    flat.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    small = base64.b64encode(out.getvalue()).decode()
    return small if len(small) < len(encoded) else encoded


def _scrub_output(output: nbformat.NotebookNode, cell: int, root: Path) -> None:
    """Mask folders, replace the random ids of styled pandas tables by the cell's number, and make
    pictures smaller."""
    output.pop("execution_count", None) if output.output_type == "display_data" else None
    if "text" in output:
        output.text = _mask_paths(output.text, root)
    data = output.get("data", {})
    if len(data) > 1 and isinstance(data.get("text/plain"), str):  # a richer form is shown
        data["text/plain"] = ADDRESS.sub("", data["text/plain"])
    for kind, value in data.items():
        if kind == "image/png":
            data[kind] = smaller_png(value)
        elif isinstance(value, str) and kind.startswith("text/"):
            for n, uuid in enumerate(dict.fromkeys(re.findall(r'id="T_([0-9a-f]{5})\b', value))):
                value = value.replace(f"T_{uuid}", f"T_{cell}_{n}")
            data[kind] = _mask_paths(value, root)


def _banner(page: Page, profile: Profile) -> str:
    """The line under the title that says what a page was made from."""
    line = f"*Executed from `notebooks/{page.notebook}.ipynb`, profile `{profile.name}`.*"
    if not profile.data.synthetic:
        return line
    return (
        ":::{warning}\nSynthetic recordings from a simulated heart (profile "
        f"`{profile.name}`). The numbers below show that the chain runs; they say nothing about "
        f"patients or about the paper's results.\n:::\n\n{line}"
    )


def scrub(
    notebook: nbformat.NotebookNode, page: Page, profile: Profile, stamp: dict, root: Path = ROOT
) -> str:
    """The text of an executed page: two identical runs give identical bytes.

    Execution times, counters of papermill, stderr and machine folders are removed, cell ids are
    set by position. The title is completed (run, "synthetic"), a provenance line is put under it,
    the cell with the default parameters is tagged `remove-cell` (the injected one stays), and
    `stamp` (see `beatssl.pages.fresh`) is stored as notebook metadata `beatssl`.
    """
    suffix = f": {page.run.run_id}" if page.run else ""
    suffix += " (synthetic)" if profile.data.synthetic else ""
    first = notebook.cells[0]
    before, head, rest = re.split(r"^(# +.+?) *$", first.source, maxsplit=1, flags=re.M)
    first.source = f"{before}{head}{suffix}\n\n{_banner(page, profile)}{rest}"
    for position, cell in enumerate(notebook.cells):
        tags = list(cell.metadata.get("tags", []))
        if "parameters" in tags and "remove-cell" not in tags:
            tags.append("remove-cell")
        kept = {key: cell.metadata[key] for key in ("mystnb",) if key in cell.metadata}
        cell.metadata = nbformat.from_dict({**kept, **({"tags": tags} if tags else {})})
        cell.id = f"cell-{position:02d}"
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                _scrub_output(output, position, root)
    notebook.metadata = nbformat.from_dict(
        {
            "beatssl": stamp,
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return nbformat.writes(notebook) + "\n"


def content_problems(notebook: nbformat.NotebookNode) -> list[str]:
    """Why an executed page must not be shown: failed, not executed, an output with an address."""
    problems = []
    if notebook.metadata.get("papermill", {}).get("exception"):
        problems.append("failed (papermill reports an exception)")
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        if cell.source.strip() and cell.execution_count is None:
            problems.append(f"cell {position} was not executed")
        for output in cell.outputs:
            text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            if output.output_type == "error":
                problems.append(f"cell {position} failed: {output.ename}: {output.evalue}")
            elif ADDRESS.search(text):
                problems.append(f"cell {position} shows a memory address (end the line with ;)")
    return problems
