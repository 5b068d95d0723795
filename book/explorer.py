"""What the explorer page draws: every stored profile over layers, as one script that assigns a global.

A script, because a page that is opened from a file may not fetch one. ``_static/explorer.js`` draws it.
"""

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from ridge_utils import figures, names, results, statistics
from ridge_utils.audit import verdict_page

#: The notebooks whose tables are read; of a curve that two of them hold, the first one's is shown.
NOTEBOOKS = ("anatomy", "predictive_information", "decodability")
#: What can be drawn: quantity and variant; its name, its panel, and its hue and dash, as in the static figures.
QUANTITIES: dict[tuple[str, str], tuple[str, str, int, str]] = {
    ("predictive_information", ""): ("I(Z; Y), the paper's estimate", "I", 0, "solid"),
    ("null_information", ""): ("its null, targets shuffled", "I", 1, "dash"),
    ("unbiased_information", ""): ("without bias (order 2)", "I", 2, "solid"),
    ("state_entropy", ""): ("H(Z), spread of the states", "H", 3, "solid"),
    ("predicted_entropy", ""): ("H(Z) foretold, no target read", "H", 4, "dash"),
    ("early_exit_accuracy", ""): ("early exit", "share", 0, "solid"),
    ("majority_accuracy", ""): ("always the commonest answer", "share", 6, "dot"),
    ("probe_accuracy", ""): ("linear probe", "share", 2, "solid"),
    ("v_information", ""): ("linear probe, V-information", "V", 2, "solid"),
    ("v_information", "mlp"): ("MLP probe, V-information", "V", 3, "dash"),
}
#: What the vertical axes say.
PANELS = {"I": "I in nats", "H": "H in nats", "V": "nats read", "share": "share right"}


def script() -> str:
    """The data as JavaScript."""
    content = {
        "quantities": {
            "/".join(key).rstrip("/"): {"label": label, "panel": panel, "colour": figures.HUES[hue], "dash": dash}
            for key, (label, panel, hue, dash) in QUANTITIES.items()
        },
        "panels": PANELS,
        "splits": {split: figures.NAMES[split] for split in ("all", "id", "ood")},
        "cases": cases(),
    }
    return f"window.RIDGE_EXPLORER = {json.dumps(content, separators=(',', ':'), allow_nan=False)};\n"


def plotly() -> bytes:
    """The library's own script, from the pinned package."""
    return resources.files("plotly").joinpath("package_data/plotly.min.js").read_bytes()


def cases() -> list[dict[str, Any]]:
    """A model on a task each, with its curves: the reference runs, then default runs of what none of them has."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for folder in [*sorted((results.FOLDER / "reference").iterdir()), results.FOLDER]:
        before = set(found)
        for path in [folder / f"{notebook}.csv" for notebook in NOTEBOOKS]:
            table, origin = results.read(path) if path.is_file() else (pd.DataFrame(columns=list(results.KEY)), {})
            for key, rows in table.groupby(["model", "task", "source"]):
                if key in before:
                    continue
                case = found.setdefault(key, _case(*key) | {"runs": [], "curves": []})
                case["runs"].append(_run(path, origin))
                known = {_key(curve) for curve in case["curves"]}
                new = [curve for curve in curves(rows) if _key(curve) not in known]
                case["curves"] += [curve | {"run": len(case["runs"]) - 1} for curve in new]
    return list(found.values())


def curves(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The profiles of one model on one task, means over training and sampling seeds.

    The ends of an interval are the means of those that the table has; where it has none but several seeds, the band of
    two standard deviations over them.
    """
    # The paper's estimate and its null from all examples, not from 200: another N of the same quantity.
    table = table.assign(variant=table["variant"].replace("whole", ""))
    groups = dict(list(table.groupby(["quantity", "variant", "split", "step", "n"], sort=False)))
    for (quantity, variant, split, step, n), rows in groups.items():
        if (quantity, variant) not in QUANTITIES:
            continue
        points = statistics.band(rows, ["site", "layer"]).set_index(["site", "layer"])
        interval = "2σ over seeds" if (points["half_width"] > 0).any() else ""
        for end in ("low", "high"):
            if (of_end := groups.get((f"{quantity}_{end}", variant, split, step, n))) is not None:
                points[end], interval = of_end.groupby(["site", "layer"])["value"].mean(), "95 %"
        # The state after the final norm stands one place to the right of the last block, as in every figure.
        points["x"] = [int(layer) + (site == "final_norm") for site, layer in points.index]
        points = points.sort_values("x")
        shown = {"y": "mean"} | ({"low": "low", "high": "high"} if interval else {})
        yield {
            "q": f"{quantity}/{variant}".rstrip("/"),
            "split": split,
            "step": int(step),
            "n": int(n),
            "seeds": int(rows["train_seed"].nunique()),
            "interval": interval,
            "x": points["x"].tolist(),
        } | {short: [_rounded(value) for value in points[name]] for short, name in shown.items()}


def _case(model: str, task: str, source: str) -> dict[str, Any]:
    return {
        "model": model,
        "task": task,
        "source": source,
        "model_name": names.display_name(model),
        "task_name": verdict_page.task_name(task, source),
    }


def _run(path: Path, origin: dict[str, Any]) -> dict[str, str]:
    """What made a table."""
    profile = "" if path.parent == results.FOLDER else f" --profile {path.parent.name}"
    return {
        "command": f"ridge run {path.stem}{profile} -o runs/{path.stem}.ipynb",
        "file": f"results/{path.relative_to(results.FOLDER).as_posix()}",
        "blocks": origin.get("model", {}).get("blocks", 0),
    }


def _key(curve: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(curve[name] for name in ("q", "split", "step", "n"))


def _rounded(value: float) -> float | None:
    return None if pd.isna(value) else float(f"{value:.5g}")
