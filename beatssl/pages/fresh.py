"""Is an executed page still what its notebook, settings and code would give?

A page stores a stamp: hashes of the notebook's source, of the profile's settings, and, module by
module, of what the notebook reaches in this package, as in the keys of products (see
`beatssl.fingerprint`). Docstrings and comments do not count. The stamp is compared part by part, so
that a stale page is reported with its reason.
"""

import nbformat

from beatssl.cache import read_json
from beatssl.fingerprint import by_module, normalised
from beatssl.pages.plan import PER_RUN, Page, read_notebook
from beatssl.profile import Profile
from beatssl.settings import config_hash, to_dict

LOOK = ("beatssl.report.figures",)  # how a page looks: decides no number
WHOLE = {"source": "its notebook", "parameters": "its parameters", "paper": "results/paper.csv"}


def source_of(notebook: nbformat.NotebookNode) -> str:
    """The code cells without the lines of IPython magics."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return "\n".join(line for line in code.splitlines() if not line.startswith(("%", "!")))


def stamp(page: Page) -> dict:
    """What the page is made from, as hashes by part.

    The code of a page includes what notebooks of earlier stages reach, because their products
    (store, encoders) are what the page reads. `upstream` holds the code cells of the notebooks
    between the pretraining stage and the page, whose results it reads.
    """
    before = page.before
    between = before[before.index(PER_RUN) :] if PER_RUN in before else ()
    folder, paper = page.root / "notebooks", page.root / "results" / "paper.csv"
    notebooks = {n: read_notebook(folder / f"{n}.ipynb") for n in [*before, page.notebook]}
    sources = {name: source_of(notebook) for name, notebook in notebooks.items()}
    code = by_module(sources.values(), page.root)
    settings = {**to_dict(page.profile), "run": page.run}
    if not between:
        del settings["runs"]
    return {
        "parameters": page.parameters,
        "source": config_hash([[c.cell_type, c.source] for c in notebooks[page.notebook].cells]),
        "settings": {name: config_hash(value) for name, value in settings.items()},
        "look": {name: code.pop(name) for name in LOOK if name in code},
        "code": code,
        "upstream": {name: config_hash(normalised(sources[name])) for name in between},
        "paper": config_hash(paper.read_text()) if between and paper.is_file() else None,
    }


def data_fingerprint(profile: Profile) -> str | None:
    """Content hash of the prepared store, or None where this machine has no store."""
    return read_json(profile.work / "store" / "manifest.json").get("fingerprint")


def stale(old: dict, new: dict, data: str | None, look: bool = True) -> list[str]:
    """Reasons why a page with stamp `old` is not what `new` would give; empty when fresh.

    `data` is the fingerprint of the store at hand; None leaves the data out of the comparison.
    `look` says whether a change of the figures' code counts: it changes no number, so a page that
    took hours is executed again for it where it can be, but is not refused.
    """
    if not old:
        return ["stale: made by hand, it has no stamp"]
    reasons = [f"{what} changed" for part, what in WHOLE.items() if old.get(part) != new.get(part)]
    if data and (old.get("data") or data) != data:
        reasons.append("the prepared store holds other data")
    for part in ("settings", "code", "upstream", *(["look"] if look else [])):
        before, now = old.get(part, {}), new.get(part, {})
        names = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        if names:
            reasons.append(f"{part} changed: {', '.join(names)}")
    return [f"stale: {reason}" for reason in reasons]
