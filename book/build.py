"""Build the book's pages from the committed notebooks, with fresh outputs where they were executed.

The sources are copied into _build/source first, so that a build changes nothing in the checkout. The numbers in the
prose are read from results/ and handed to the pages as substitutions. Where nothing has changed since the last build,
nothing is built.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE, HTML = ROOT / "_build" / "source", ROOT / "_build" / "html"
#: The digest of what the pages that are there were built from.
BUILT = ROOT / "_build" / "html.sha256"
#: Tags of the cells that the book leaves out: they speak of a run of one's own.
HIDDEN = {"injected-parameters", "own-run"}
GITHUB = re.compile(r"(https://github\.com/[\w.-]+/[\w.-]+?)(?:\.git|/)?")
#: The cell behind the title of a downloaded notebook, where the book has a repository; the page leaves it out.
INSTALL = """\
# Outside the project's own environment: gets the project and its embedded model.
import importlib.util, sys

if importlib.util.find_spec("ridge_utils") is None:
    %pip install --quiet "ridge-utils @ git+{address}"
    !{{sys.executable}} -m ridge_utils setup
"""


def main() -> int:
    """Build, print where the book is, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--executed", type=lambda name: Path(name).resolve(), help="folder of executed notebooks (default: none)"
    )
    parser.add_argument("--builder", default="html", choices=["html", "linkcheck", "singlehtml"])
    parser.add_argument(
        "--repository", type=repository, default=remote(), metavar="https://github.com/OWNER/NAME",
        help="turns on buttons to it, Colab and Binder (default: git's remote, if it is one)",
    )  # fmt: skip
    options = parser.parse_args()
    started = time.monotonic()
    index = HTML / "index.html"
    digest = inputs(options.executed) + options.repository
    if options.builder == "html" and index.is_file() and BUILT.is_file() and BUILT.read_text() == digest:
        print(f"The book is as it was built. Open:\n  {index.as_uri()}")
        return 0
    if options.builder == "html":
        BUILT.unlink(missing_ok=True)
    stage(options.executed, options.repository)
    command = [
        "build",
        str(SOURCE),
        "--path-output",
        str(ROOT),
        "--builder",
        options.builder,
        "-W",
        "-n",
        "--keep-going",
    ]
    log = ROOT / "_build" / "book.log"
    # For the extension theme.py.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    with log.open("w", encoding="utf-8") as file:
        # Matplotlib and torch are imported for the API page: one thread is enough for that.
        done = subprocess.run(
            [str(Path(sys.executable).with_name("jupyter-book")), *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONPATH": path},
            check=False,
        )
    text = log.read_text(encoding="utf-8")
    if done.returncode:
        problems = [line for line in text.splitlines() if "WARNING" in line or "ERROR" in line or "broken" in line]
        print("\n".join(problems or text.splitlines()[-30:]))
        print(f"The book could not be built; the whole log is in {log.relative_to(ROOT)}.")
        return 1
    if options.builder == "html":
        audits()
        BUILT.write_text(digest)
        print(f"Built the book in {time.monotonic() - started:.0f} s, without a warning. Open:\n  {index.as_uri()}")
    return 0


def repository(address: str) -> str:
    """The address of a repository on GitHub as it was given, without an ending; empty for none."""
    if address and not (found := GITHUB.fullmatch(address)):
        raise argparse.ArgumentTypeError(f"{address!r} is no address such as https://github.com/OWNER/NAME")
    return found[1] if address else ""


def remote() -> str:
    """The repository that git's ``origin`` names; empty where there is none, or it is not an address on GitHub."""
    asked = subprocess.run(
        ["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = GITHUB.fullmatch(asked.stdout.strip())
    return found[1] if found else ""


def with_buttons(config: dict[str, Any], address: str) -> dict[str, Any]:
    """Jupyter Book's configuration with buttons to a repository, and launchers of its notebooks."""
    buttons = dict.fromkeys(("use_repository_button", "use_edit_page_button", "use_issues_button"), True)
    launchers = {"colab_url": "https://colab.research.google.com", "binderhub_url": "https://mybinder.org"}
    return config | {
        "repository": {"url": address, "branch": "main", "path_to_book": ""},
        "launch_buttons": launchers | {"notebook_interface": "jupyterlab"},
        "html": config["html"] | buttons,
    }


def inputs(executed: Path | None) -> str:
    """A digest of every file that the pages are made of, the modules of the API page among them."""
    folders = [ROOT / name for name in ("book", "notebooks", "results", "ridge_utils")] + (
        [executed] if executed else []
    )
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix != ".pyc"]
    digest = hashlib.sha256()
    for path in [ROOT / "_config.yml", ROOT / "_toc.yml", ROOT / "requirements.txt", ROOT / "constraints.txt", *paths]:
        if path.is_file():
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def stage(executed: Path | None, address: str = "") -> None:
    """Copy what the book is made of into its source folder; leave files alone that have not changed."""
    import yaml

    from ridge_utils import outputs
    from ridge_utils.errors import StorageError

    sys.path.insert(0, str(Path(__file__).parent))
    import architecture
    import explorer
    import provenance
    import theme

    wanted: dict[Path, bytes] = {}
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    if address:
        config = with_buttons(config, address)
    numbers, tables = provenance.status()
    config["parse"]["myst_substitutions"] = substitutions() | numbers
    wanted[Path("_config.yml")] = yaml.safe_dump(config, allow_unicode=True, sort_keys=False).encode()
    wanted[Path("_toc.yml")] = (ROOT / "_toc.yml").read_bytes()
    for path in (ROOT / "book").rglob("*"):
        if path.is_file() and path.suffix in {".md", ".bib", ".css", ".js", ".png", ".svg"}:
            wanted[path.relative_to(ROOT)] = path.read_bytes()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        try:
            outputs.check_seal(path)
        except StorageError as error:
            sys.exit(str(error))
        wanted[path.relative_to(ROOT)] = page(path, executed / path.name if executed else path, address)
    for path in (ROOT / "results").rglob("*"):  # the captions link to them
        if path.suffix in {".csv", ".json"}:
            wanted[path.relative_to(ROOT)] = path.read_bytes()
    wanted[Path("book/_static/icons.css")] = theme.icons().encode()
    wanted[Path("book/_static/explorer-data.js")] = explorer.script().encode()
    wanted[Path("book/_static/plotly.min.js")] = explorer.plotly()
    for name, text in (architecture.pages() | tables).items():
        wanted[Path("book") / name] = text.encode()
    wanted[Path("book/images/architecture.svg")] = architecture.figure()
    SOURCE.mkdir(parents=True, exist_ok=True)
    for old in SOURCE.rglob("*"):
        if old.is_file() and old.relative_to(SOURCE) not in wanted:
            old.unlink()
    for name, content in wanted.items():
        target = SOURCE / name
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def audits() -> None:
    """Put the pages of audited models, which are no part of the book, where its tables lead."""
    shutil.rmtree(HTML / "results", ignore_errors=True)
    for path in (ROOT / "results").glob("audit/*/audit.html"):
        target = HTML / path.relative_to(ROOT)
        target.parent.mkdir(parents=True)
        shutil.copyfile(path, target)


def page(path: Path, executed: Path, address: str = "") -> bytes:
    """A committed notebook as the book shows it, with the outputs of the executed one where its code is the same."""
    import nbformat
    import provenance

    notebook = nbformat.read(path, as_version=4)
    if executed.is_file() and executed != path:
        fresh = nbformat.read(executed, as_version=4)
        pairs = list(zip(code(notebook), code(fresh), strict=False))
        if len(pairs) == len(code(notebook)) and all(cell.source == other.source for cell, other in pairs):
            for cell, other in pairs:
                cell.outputs = other.outputs
    captions = {figure["name"]: figure["caption"] for figure in map(_figure, code(notebook)) if figure}
    shown = []
    for cell in notebook.cells:
        tags = set(cell.metadata.get("tags", []))
        if not HIDDEN & tags:
            shown.append(cell)
            if (figure := _figure(cell)) and "hide-cell" not in tags:
                data = provenance.under(provenance.tables_of(figure["caption"], captions, path.stem))
                shown.append(nbformat.v4.new_markdown_cell(data, id=f"data-{figure['name']}"[:64]))
    if address:
        text = INSTALL.format(address=address)
        shown.insert(1, nbformat.v4.new_code_cell(text, id="install", metadata={"tags": ["remove-cell"]}))
    notebook.cells = shown
    return nbformat.writes(notebook).encode()


def _figure(cell: Any) -> dict[str, str]:
    """Name and caption of a cell's figure; empty where it has none."""
    return cell.metadata.get("mystnb", {}).get("figure", {}) if cell.cell_type == "code" else {}


def code(notebook: Any) -> list[Any]:
    """The code cells of a notebook."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def substitutions() -> dict[str, str]:
    """The numbers in the prose pages; the book is not built while a fact that their sentences rest on does not hold."""
    import answer

    if wrong := [fact for fact, holds in answer.facts().items() if not holds]:
        sys.exit("A sentence rests on what results/ no longer shows:\n  " + "\n  ".join(wrong))
    return answer.numbers()


if __name__ == "__main__":
    raise SystemExit(main())
