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

#: The notebooks whose tables are read; of a curve that two of them hold, the first one's is shown.
NOTEBOOKS = ("anatomy", "predictive_information", "decodability")
#: What can be drawn: quantity and variant, its name, its panel, and how it looks, as in the static figures.
QUANTITIES: dict[tuple[str, str], dict[str, str]] = {
    ("predictive_information", ""): {
        "label": "I(Z; Y), the paper's estimate", "panel": "I", "colour": figures.HUES[0], "dash": "solid",
    },
    ("null_information", ""): {
        "label": "its null, targets shuffled", "panel": "I", "colour": figures.HUES[1], "dash": "dash",
    },
    ("unbiased_information", ""): {
        "label": "without bias (order 2)", "panel": "I", "colour": figures.HUES[2], "dash": "solid",
    },
    ("state_entropy", ""): {
        "label": "H(Z), spread of the states", "panel": "H", "colour": figures.HUES[3], "dash": "solid",
    },
    ("predicted_entropy", ""): {
        "label": "H(Z) foretold, no target read", "panel": "H", "colour": figures.HUES[4], "dash": "dash",
    },
    ("early_exit_accuracy", ""): {
        "label": "early exit", "panel": "share", "colour": figures.HUES[0], "dash": "solid",
    },
    ("majority_accuracy", ""): {
        "label": "always the commonest answer", "panel": "share", "colour": figures.HUES[6], "dash": "dot",
    },
    ("probe_accuracy", ""): {
        "label": "linear probe", "panel": "share", "colour": figures.HUES[2], "dash": "solid",
    },
    ("v_information", ""): {
        "label": "linear probe, V-information", "panel": "V", "colour": figures.HUES[2], "dash": "solid",
    },
    ("v_information", "mlp"): {
        "label": "MLP probe, V-information", "panel": "V", "colour": figures.HUES[3], "dash": "dash",
    },
}  # fmt: skip
#: What the vertical axes say.
PANELS = {"I": "I in nats", "H": "H in nats", "V": "nats read", "share": "share right"}
TASKS = {"clutrr": "CLUTRR", "ecqa": "ECQA", "cnn_dailymail": "CNN/DailyMail"}
DATA = {"local": "real", "hub": "real", "synthetic": "made here"}


def script() -> str:
    """The data as JavaScript."""
    content = {
        "quantities": {"/".join(key).rstrip("/"): look for key, look in QUANTITIES.items()},
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
    name, *answer = task.split(":")
    data = "" if name == "synthetic_arithmetic" else f", {DATA.get(source, source)}"
    task_name = ", ".join([TASKS.get(name, name.replace("_", " ")), *answer])
    return {
        "model": model,
        "task": task,
        "source": source,
        "model_name": names.display_name(model),
        "task_name": f"{task_name}{data}",
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
