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
from typing import Any

import nbformat
import pandas as pd
import yaml

from ridge_utils import figures, paper, reports, results, statistics, study, tolerances
from ridge_utils.audit import claims, questions, verdict_page, verdicts

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "_build" / "source"
STORED = "predictive_information"


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
    """A notebook as the book shows it: without the cell in which `ridge run` sets where the table goes."""
    if not path.is_file():
        sys.exit(f"{path} is missing: execute the notebooks first (`make book`).")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    notebook.metadata.pop("papermill", None)
    return nbformat.writes(notebook).encode()


def substitutions() -> dict[str, Any]:
    """What the prose says of the stored numbers."""
    table, origin = results.read(results.FOLDER / f"{STORED}.csv")
    differences, _ = results.read(results.FOLDER / tolerances.DIFFERENCES / f"{STORED}.csv")
    summary = statistics.ridge_summary(table)
    parameters = origin["parameters"]
    tables = verdicts.stored()
    judged = verdicts.judge(tables)
    return {
        "model": origin["model"]["name"],
        "task": parameters["task"].replace("_", " "),
        "source": origin["data"]["source"],
        "n": parameters["n_samples"],
        "blocks": origin["model"]["blocks"],
        "seeds": len(parameters["sampling_seeds"]),
        "date": origin["date"],
        "versions": ", ".join(f"{name} {origin['versions'][name]}" for name in ("torch", "transformers")),
        "finding": statistics.headline(summary, origin["model"]["name"]),
        "ridge_layers": tolerances.describe_ridge_layers(tolerances.ridge_layers(differences, table)),
        "ridge_table": ridge_table(summary[summary["split"] == "all"].sort_values("step")),
        "ridge_counts": reports.ridge_counts(study.references(STORED)),
        "verdicts": verdict_table(),
        "audit_headline": verdict_page.headline(judged),
        "audit_verdicts": verdict_page.counts_table(judged),
        **questions.answers(judged, tables),
    }


def verdict_table() -> str:
    """A Markdown table of how often each claim was found to hold in the reference runs."""
    rows = claims.compare({path.stem: reference_tables(path.stem) for path in (ROOT / "notebooks").glob("*.ipynb")})
    counts = rows.groupby(["claim", "agrees"]).size().unstack(fill_value=0)  # noqa: PD010
    lines = ["claim | what it says | yes | partly | no", "--- | --- | ---: | ---: | ---:"]
    for claim in paper.claims().itertuples():
        found = [str(counts.get(verdict, {}).get(claim.id, 0)) for verdict in ("yes", "partly", "no")]
        lines.append(" | ".join([claim.id, claim.statement, *found]))
    return "\n".join(f"| {line} |" for line in lines)


def reference_tables(notebook: str) -> dict[str, pd.DataFrame]:
    """The tables of a notebook's reference runs by profile."""
    return {name: table for name, (table, _) in results.references(notebook).items()}


def ridge_table(summary: pd.DataFrame) -> str:
    """A Markdown table of the ridge at each checkpoint."""
    columns = ["checkpoint", "ridge layer", "I at the ridge", "at the last block", "after the final norm", "fall"]
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    for row, ridge in zip(summary.itertuples(), figures.ridge_names(summary), strict=True):
        values = [f"{value:.3f}" for value in (row.at_ridge, row.at_last_block, row.at_final_norm)]
        fall = f"{row.to_last_block:.3f} ± {row.to_last_block_half_width:.3f}" if row.ridge_layer < row.blocks else ""
        lines.append(" | ".join([f"step {row.step}" if row.step else "untouched", ridge, *values, fall]))
    return "\n".join(f"| {line} |" for line in lines)


def durations(notebooks: Path) -> list[str]:
    """How long each executed notebook took."""
    lines = ["Time to execute each notebook:"]
    for path in sorted(notebooks.glob("*.ipynb")):
        seconds = json.loads(path.read_text(encoding="utf-8"))["metadata"]["papermill"]["duration"]
        lines.append(f"  {path.stem:28} {seconds:6.0f} s")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
