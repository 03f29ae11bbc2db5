"""Run all notebooks of a profile in one process, stage by stage: python run_notebooks.py PROFILE.

A notebook's code cells run in one namespace, as in a kernel; what a cell ends with is rendered, as
a page would show it. Prints the texts that are shown.
"""

from __future__ import annotations

import ast
import sys
import traceback

import IPython.display
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import nbformat

from beatssl.pages import plan as pages
from beatssl.profile import load_profile
from beatssl.results.collect import collect
from beatssl.settings import ROOT

FIRST_OF_RESULTS = "08_ablation"  # from here on the notebooks read results/<profile>.csv


def show(*values: object) -> None:
    """Render as a notebook would."""
    for value in values:
        text = getattr(value, "data", None)
        if isinstance(text, str):
            print(text)
        elif hasattr(value, "_repr_html_"):
            value._repr_html_()
        elif isinstance(value, plt.Figure):
            value.canvas.draw()


def run_cell(source: str, namespace: dict) -> None:
    tree = ast.parse(source)
    last = tree.body[-1] if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    if last is not None:
        tree.body.pop()
    exec(compile(tree, "cell", "exec"), namespace)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
        if not source.rstrip().endswith(";"):
            show(value)
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
    plt.close("all")


def main(name: str) -> int:
    IPython.display.display = show
    profile = load_profile(name)
    failed = 0
    for page in pages.plan(profile):
        notebook = nbformat.read(ROOT / "notebooks" / f"{page.notebook}.ipynb", as_version=4)
        if page.notebook >= FIRST_OF_RESULTS:
            collect(profile)
        print(f"== {page.name}", flush=True)
        namespace = {"__name__": "__main__"}
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            try:
                run_cell(cell.source, namespace)
                if "parameters" in cell.metadata.get("tags", []):
                    namespace |= page.parameters
            except Exception:
                traceback.print_exc(limit=-3)
                print(f"FAILED {page.name}, cell {number}", flush=True)
                failed += 1
                break
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
