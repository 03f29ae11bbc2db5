"""`pdf`: the book as one file to print or to send, by singlehtml and a browser; without LaTeX."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import yaml

from beatssl.cache import replacing, write_text
from beatssl.pages.build import JUPYTER_BOOK, RENDER, tidy, write_sources
from beatssl.pages.run import python
from beatssl.settings import ROOT, ConfigError, read_yaml

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PRINT = "--headless --no-sandbox --disable-gpu --no-pdf-header-footer --virtual-time-budget=60000"


def pdf(name: str = "subset", root: Path = ROOT) -> int:
    """Write `_build/beatssl.pdf`: all chapters but the pages of single runs.

    Args: name: the profile whose pages it holds beside the committed ones.

    Raises:
        ConfigError: no browser is installed.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise ConfigError(f"a PDF is printed by a browser: install one of {', '.join(BROWSERS)}")
    start, toc = time.monotonic(), read_yaml(write_sources(name, root))
    for part in toc["parts"]:
        part["chapters"] = [c for c in part["chapters"] if "sections" not in c]
    toc["parts"] = [part for part in toc["parts"] if part["chapters"]]
    target, folder = root / "_build" / "_toc_pdf.yml", root / "_build" / "pdf"
    write_text(target, yaml.safe_dump(toc, sort_keys=False, allow_unicode=True))
    shutil.rmtree(folder, ignore_errors=True)
    print("rendering one page ...", flush=True)
    words = RENDER.replace(" -W -n --keep-going", " --builder singlehtml").split()
    words += ["--toc", str(target.resolve()), "--path-output", str(folder)]
    status, said = python(["-c", JUPYTER_BOOK, *words], root, PYTHONWARNINGS="ignore")
    page = folder / "_build" / "singlehtml" / "index.html"
    if status or not page.is_file():
        print(f"{said[-3000:]}\nno PDF: jupyter-book failed")
        return 1
    tidy(page.parent)
    print("printing ...", flush=True)
    with replacing(root / "_build" / "beatssl.pdf") as part, tempfile.TemporaryDirectory() as own:
        words = [*PRINT.split(), f"--user-data-dir={own}", f"--print-to-pdf={part}", page.as_uri()]
        done = subprocess.run([browser, *words], capture_output=True, text=True, timeout=300)
        if not part.is_file():
            raise ConfigError(f"the browser printed nothing: {done.stderr[-500:]}")
    shutil.rmtree(folder)
    print(f"printed in {time.monotonic() - start:.0f} s; {root / '_build' / 'beatssl.pdf'}")
    return 0
