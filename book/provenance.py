"""Where the stored tables come from: the page Status, and what stands under each figure.

Everything is read from the JSON files beside the tables.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

from ridge_utils import results

#: From a page in ``notebooks/`` or ``book/`` to the tables.
RESULTS = "../results"
_TABLE = re.compile(rf"{re.escape(RESULTS)}/([\w./-]+)\.csv")
_FIGURE = re.compile(r"\{numref\}`(fig-[\w-]+)`")


@cache
def origins() -> dict[str, dict[str, Any]]:
    """What made each table, by its path in ``results/`` without its ending; users' own audits are left out."""
    paths = [path for path in sorted(results.FOLDER.rglob("*.json")) if "audit" not in path.parts]
    return {
        path.relative_to(results.FOLDER).with_suffix("").as_posix(): json.loads(path.read_text(encoding="utf-8"))
        for path in paths
    }


def command(table: str) -> str:
    """The command that makes a table of a notebook; empty for the others."""
    *folder, name = table.split("/")
    if not (results.FOLDER.parent / "notebooks" / f"{name}.ipynb").is_file() or folder[:1] == ["differences"]:
        return ""
    return f"ridge run {name}" + (f" --profile {folder[-1]}" if folder else "") + f" -o runs/{name}.ipynb"


def duration(seconds: float | None) -> str:
    """Hours and minutes, or seconds below a minute."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d}" if hours else f"{minutes} min"


def status() -> tuple[dict[str, str], dict[str, str]]:
    """The numbers of the page Status, and its two tables as files."""
    every = origins()
    versions = Counter(json.dumps(origin["versions"]) for origin in every.values() if "versions" in origin)
    machines = Counter(_machine(origin["machine"]) for origin in every.values() if "machine" in origin)
    numbers = {
        "status_tables": str(len(every)),
        "status_hours": f"{sum(origin.get('seconds') or 0 for origin in every.values()) / 3600:.0f}",
        "status_newest": max(origin.get("date", "") for origin in every.values()),
        "status_machine": "; ".join(f"{machine} ({count} tables)" for machine, count in machines.most_common()),
        "status_versions": "; ".join(
            ", ".join(f"{name} {number}" for name, number in json.loads(kind).items()) + f" ({count} tables)"
            for kind, count in versions.most_common()
        ),
    }
    default = [name for name in every if "/" not in name]
    pages = {
        "status-default.md": _table(default),
        "status-reference.md": _table(name for name in every if name.startswith("reference/")),
    }
    return numbers, pages


def _machine(of: dict[str, Any]) -> str:
    parts = f"{of['processor']} ({of['instructions']})", f"{of['cores']} cores", of["system"]
    return ", ".join([*parts, of["accelerator"] or "no accelerator"])


def _table(names: Iterable[str]) -> str:
    rows = ["| table | date | duration | threads | commit | digest |", "|---|---|---|---|---|---|"]
    for name in names:
        origin = origins()[name]
        cells = [
            f"{{download}}`{name.removeprefix('reference/')} <{RESULTS}/{name}.csv>`",
            origin.get("date", "–"),
            duration(origin.get("seconds")),
            str(origin.get("machine", {}).get("threads", "–")),
            f"`{(origin.get('commit') or '–')[:8]}`",
            f"`{origin['sha256'][:8]}`",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def tables_of(caption: str, others: dict[str, str], default: str) -> list[str]:
    """The tables of a figure: those its caption links to, else those of the figures it names, else the page's own."""
    found = _TABLE.findall(caption)
    for name in [] if found else _FIGURE.findall(caption):
        found += _TABLE.findall(others.get(name, ""))
    return list(dict.fromkeys(found)) or ([default] if default in origins() else [])


def under(tables: Iterable[str]) -> str:
    """What stands folded under a figure: each table, its provenance, its command, and how long that took."""
    lines = []
    for table in tables:
        files = f"{{download}}`table <{RESULTS}/{table}.csv>`, {{download}}`provenance <{RESULTS}/{table}.json>`"
        made = f": `{command(table)}` ({duration(origins()[table].get('seconds'))})" if command(table) else ""
        lines.append(f"- `{table}` {files}{made}")
    return "\n".join([":::{dropdown} Data of this figure", ":class-container: figure-data", *lines, ":::"])
