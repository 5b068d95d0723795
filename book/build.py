"""Build the book's pages: from the committed notebooks, or from a folder of freshly executed ones.

The sources are copied into _build/source first, so that a build changes nothing in the checkout. The numbers in the
prose are read from results/ here and handed to the pages as substitutions.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import yaml

sys.path.insert(0, str(Path(__file__).parent))
import answer

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "_build" / "source"


def main() -> int:
    """Build, print where the book is, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--executed", type=Path, help="folder of executed notebooks (default: the committed ones)")
    parser.add_argument("--builder", default="html", choices=["html", "linkcheck"])
    options = parser.parse_args()
    started = time.monotonic()
    notebooks = options.executed or ROOT / "notebooks"
    stage(notebooks)
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
    with log.open("w", encoding="utf-8") as file:
        # Matplotlib and torch are imported for the API page: one thread is enough for that.
        done = subprocess.run(
            [str(Path(sys.executable).with_name("jupyter-book")), *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
            check=False,
        )
    text = log.read_text(encoding="utf-8")
    if done.returncode:
        problems = [line for line in text.splitlines() if "WARNING" in line or "ERROR" in line or "broken" in line]
        print("\n".join(problems or text.splitlines()[-30:]))
        print(f"The book could not be built; the whole log is in {log.relative_to(ROOT)}.")
        return 1
    if options.builder == "html":
        index = ROOT / "_build" / "html" / "index.html"
        print(f"Built the book in {time.monotonic() - started:.0f} s, without a warning. Open:\n  {index.as_uri()}")
        for line in durations(notebooks) if options.executed else []:
            print(line)
    return 0


def stage(notebooks: Path) -> None:
    """Copy what the book is made of into its source folder; leave files alone that have not changed."""
    wanted: dict[Path, bytes] = {}
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config["parse"]["myst_substitutions"] = substitutions()
    wanted[Path("_config.yml")] = yaml.safe_dump(config, allow_unicode=True, sort_keys=False).encode()
    wanted[Path("_toc.yml")] = (ROOT / "_toc.yml").read_bytes()
    for path in (ROOT / "book").rglob("*"):
        if path.is_file() and path.suffix in {".md", ".bib", ".css", ".png", ".svg"}:
            wanted[path.relative_to(ROOT)] = path.read_bytes()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        wanted[path.relative_to(ROOT)] = page(notebooks / path.name)
    SOURCE.mkdir(parents=True, exist_ok=True)
    for old in SOURCE.rglob("*"):
        if old.is_file() and old.relative_to(SOURCE) not in wanted:
            old.unlink()
    for name, content in wanted.items():
        target = SOURCE / name
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def page(path: Path) -> bytes:
    """A notebook as the book shows it: without what only a run of one's own says."""
    if not path.is_file():
        sys.exit(f"{path} is missing: execute the notebooks first (`make book`).")
    notebook = nbformat.read(path, as_version=4)
    hidden = {"injected-parameters", "own-run"}
    notebook.cells = [cell for cell in notebook.cells if not hidden & set(cell.metadata.get("tags", []))]
    notebook.metadata.pop("papermill", None)
    return nbformat.writes(notebook).encode()


def substitutions() -> dict[str, str]:
    """The numbers in the prose pages; the book is not built while a fact that their sentences rest on does not hold."""
    if wrong := [fact for fact, holds in answer.facts().items() if not holds]:
        sys.exit("A sentence rests on what results/ no longer shows:\n  " + "\n  ".join(wrong))
    return answer.numbers()


def durations(notebooks: Path) -> list[str]:
    """How long each executed notebook took."""
    lines = ["Time to execute each notebook:"]
    for path in sorted(notebooks.glob("*.ipynb")):
        seconds = json.loads(path.read_text(encoding="utf-8"))["metadata"]["papermill"]["duration"]
        lines.append(f"  {path.stem:28} {seconds:6.0f} s")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
