"""Executed notebooks without what differs between two identical runs, and what is wrong in one."""

import base64
import io
import os
import re
from pathlib import Path

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from PIL import Image

from beatssl.pages.plan import Page, template
from beatssl.settings import work_dir

ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")
STYLED = re.compile(r'id="T_([0-9a-f]{5})\b')  # the random id of a styled pandas table
LARGEST_SVG = 20_000  # characters: a figure that needs more is kept as pixels
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
LANGUAGE = {"name": "python", "pygments_lexer": "ipython3"}


def scrub(notebook: nbformat.NotebookNode, page: Page, stamp: dict) -> str:
    """The text of an executed page: two identical runs give identical bytes.

    Execution times, counters of papermill, stderr and machine folders are removed, cell ids are
    set by position. The title is completed (run, "synthetic"); the cell with the default parameters
    is tagged `remove-cell`, as are the injected one where it only names the profile, and those
    tagged `only-<method>` where the run is of another method; `stamp` (see `beatssl.pages.fresh`)
    is stored as notebook metadata `beatssl`.
    """
    first, synthetic = notebook.cells[0], page.profile.data.synthetic
    title = (f": {page.run.run_id}" if page.run else "") + (" (synthetic)" if synthetic else "")
    notes = template("synthetic", page.root, profile=page.profile) if synthetic else ""
    hidden = {"parameters"} if page.run else {"parameters", "injected-parameters"}
    before, head, rest = re.split(r"^(# +.+?) *$", first.source, maxsplit=1, flags=re.M)
    first.source = f"{before}{head}{title}\n\n{notes}".rstrip("\n") + rest
    streams = CoalesceStreamsPreprocessor()
    for position, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        only = [tag for tag in tags if tag.startswith("only-")]
        foreign = only and page.run and f"only-{page.run.method}" not in only
        if (hidden & {*tags} or foreign) and "remove-cell" not in tags:
            tags.append("remove-cell")
        cell.metadata = {k: cell.metadata[k] for k in ("mystnb", "tags") if cell.metadata.get(k)}
        cell.id = f"cell-{position:02d}"
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            streams.preprocess_cell(cell, {}, position)  # print flushes when it likes
            for output in cell.outputs:
                _scrub_output(output, position, page.root)
    notebook.metadata = {"beatssl": stamp, "kernelspec": KERNEL, "language_info": LANGUAGE}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return nbformat.writes(notebook) + "\n"


def _scrub_output(output: nbformat.NotebookNode, cell: int, root: Path) -> None:
    """Mask folders, number the ids of styled tables, make pictures smaller."""
    if "text" in output:
        output.text = _mask_paths(output.text, root)
    data = output.get("data", {})
    if "image/svg+xml" in data and "image/png" in data:
        vector = len(data["image/svg+xml"]) <= LARGEST_SVG
        del data["image/png" if vector else "image/svg+xml"]
    if len(data) > 1 and isinstance(data.get("text/plain"), str):  # a richer form is shown
        data["text/plain"] = ADDRESS.sub("", data["text/plain"])
    for kind, value in data.items():
        if kind == "image/png":
            data[kind] = smaller_png(value)
        elif isinstance(value, str) and kind.startswith("text/"):
            for number, uuid in enumerate(dict.fromkeys(STYLED.findall(value))):
                value = value.replace(f"T_{uuid}", f"T_{cell}_{number}")
            data[kind] = _mask_paths(value, root)


def _mask_paths(text: str, root: Path) -> str:
    """Replace this machine's folders, so that a page reads the same wherever it was run."""
    data = os.environ.get("BEATSSL_DATA", "").rstrip("/")
    known = {str(root): ".", str(work_dir()): "work", str(Path.home()): "~", data: "$BEATSSL_DATA"}
    for folder in sorted(known, key=len, reverse=True):
        if len(folder) > 1:
            text = re.sub(re.escape(folder) + r"(?![\w-])", known[folder], text)
    return text


def smaller_png(encoded: str) -> str:
    """The same picture with at most 256 colours, a third of the bytes: the pages are committed.

    Args: encoded: base64 of a PNG file. A picture that would not become smaller is kept."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    out = io.BytesIO()
    flat.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return min(encoded, base64.b64encode(out.getvalue()).decode(), key=len)


def content_problems(notebook: nbformat.NotebookNode) -> list[str]:
    """Why an executed page must not be shown: failed, not executed, an output with an address."""
    failed = notebook.metadata.get("papermill", {}).get("exception")
    problems = ["failed (papermill reports an exception)"] if failed else []
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            problems.append(f"cell {position} was not executed")
        for output in cell.get("outputs", []):
            text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            if output.output_type == "error":
                problems.append(f"cell {position} failed: {output.ename}: {output.evalue}")
            elif ADDRESS.search(text):
                problems.append(f"cell {position} shows a memory address (end the line with ;)")
    return problems
