"""The house, read from its imports: the figure of book/architecture.md, and the pages of the API.

A module stands in one room. The rooms are listed in the order of the data's way, and a module imports only from its own
room or from one before it; what is not so, :func:`problems` names.
"""

import ast
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PACKAGE = Path(__file__).resolve().parent.parent / "ridge_utils"


@dataclass(frozen=True)
class Room:
    """Modules that do one thing."""

    name: str
    #: what leaves the room, written beside the arrow to the next one
    gives: str
    modules: tuple[str, ...]
    #: left, bottom, width and height in the figure
    place: tuple[float, float, float, float]
    #: empty for the core; a wing holds the modules of its subpackage
    wing: str = ""


ROOMS = (
    Room("Cellar", "", ("errors", "tensors", "cache", "files", "batches", "profiles"), (0.2, -0.1, 6.3, 0.5)),
    Room("Prompts", "prompt and target", ("tasks",), (0.2, 8.1, 4.1, 0.7)),
    Room(
        "Model",
        "weights of a checkpoint",
        ("embedded", "names", "models", "random_models", "dequantised", "weights"),
        (0.2, 6.85, 4.1, 0.7),
    ),
    Room(
        "Hidden states",
        "states: (layers, N, d)",
        ("training", "representations", "generation", "store"),
        (0.2, 5.6, 4.1, 0.7),
    ),
    Room("Information", "", ("kernels", "information", "unbiased", "sequences"), (0.2, 4.15, 1.75, 0.9)),
    Room("Probes", "numbers per layer", ("early_exit", "attention", "residual_scaling"), (2.05, 4.15, 2.25, 0.9)),
    Room(
        "Table",
        "a tidy table: CSV with SHA-256",
        ("results", "statistics", "inference", "measures", "study", "tolerances"),
        (0.2, 2.7, 4.1, 0.9),
    ),
    Room("Page", "", ("formatting", "figures", "paper", "page", "outputs", "notebooks"), (0.2, 1.45, 4.1, 0.7)),
    Room("Audit wing", "", (), (4.75, 1.45, 1.75, 7.35), "audit"),
    Room("Run", "", (), (-0.1, 0.65, 6.6, 0.45), "run"),
)

COLOURS = {"": "#dcebf7", "audit": "#f7e3d4", "run": "#e6e0f0"}

#: Subpackages that are a room of their own; tasks stands in the figure as one module.
WINGS = {"audit": "Audit wing", "run": "Run", "tasks": "Prompts"}


def modules() -> dict[str, Path]:
    """Every module of the package but the private ones, by its name without the package's."""
    paths = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__" and not name.startswith("_"):
            paths[name] = path
    return paths


def room(module: str) -> str:
    """The name of a module's room; empty where it has none."""
    top = module.partition(".")[0]
    return WINGS.get(top) or next((r.name for r in ROOMS if module in r.modules), "")


def imports() -> dict[str, set[str]]:
    """The package's modules that each module imports, wherever in its file."""
    known = modules()
    return {name: _imported(path, known) for name, path in known.items()}


def _imported(path: Path, known: Mapping[str, Path]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            base = node.module.removeprefix(PACKAGE.name).removeprefix(".")
            for alias in node.names:
                name = f"{base}.{alias.name}".removeprefix(".")
                found.add(name if name in known else base)
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix(f"{PACKAGE.name}.") for a in node.names if a.name.startswith(PACKAGE.name)}
    return found & set(known)


def problems() -> list[str]:
    """Modules without a room and imports from a later room, a sentence each."""
    order = {r.name: place for place, r in enumerate(ROOMS)}
    # Neither wing stands on the other: the order says only that the core knows none of them.
    sentences = []
    for module, others in imports().items():
        here = room(module)
        if not here:
            sentences.append(f"ridge_utils.{module} stands in no room: name it in ROOMS of book/architecture.py.")
            continue
        for other in sorted(others):
            if room(other) and order[room(other)] > order[here]:
                sentences.append(f"ridge_utils.{module} ({here}) imports {other}, which comes later ({room(other)}).")
    named = {module for r in ROOMS for module in r.modules}
    return sentences + [f"ROOMS names {m}, which is no module." for m in sorted(named - modules().keys())]


def figure() -> bytes:
    """The house and the data's way as an SVG image: rooms, their modules, and which rooms the wings import from."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    with mpl.rc_context({"svg.hashsalt": "house", "svg.fonttype": "path", "font.size": 9}):
        drawing, ax = plt.subplots(figsize=(6.8, 9.2), facecolor="white")
        drawing.subplots_adjust(0, 0, 1, 1)
        ax.set(xlim=(-0.2, 6.65), ylim=(-0.2, 9.0))
        ax.set_axis_off()
        for r in ROOMS:
            left, bottom, width, height = r.place
            box = FancyBboxPatch(
                (left, bottom), width, height, "round,pad=0.04", fc=COLOURS[r.wing], ec="#555555", lw=0.8
            )
            ax.add_patch(box)
            ax.text(left + 0.06, bottom + height, r.name, weight="bold", va="top", fontsize=10)
            ax.text(left + 0.06, bottom + height - 0.25, _wrapped(_inside(r), width), va="top", linespacing=1.4)
        for r in ROOMS:
            if r.gives:
                left, bottom, width, _ = r.place
                x = left + width - 0.3
                _arrow(ax, (x, bottom - 0.06), (x, bottom - 0.48), "#0072b2", 2.2)
                ax.text(x - 0.15, bottom - 0.27, r.gives, ha="right", va="center", style="italic", color="#0072b2")
        for start, end in _imports_of_wings():
            _arrow(ax, start, end, "#777777", 0.9)
        buffer = io.BytesIO()
        drawing.savefig(buffer, format="svg", metadata={"Date": None})
        plt.close(drawing)
    return buffer.getvalue()


def _inside(room_: Room) -> list[str]:
    """The modules of a room that the figure names."""
    present = [m for m in modules() if room(m) == room_.name and m not in WINGS]
    return [m.partition(".")[2] for m in present] if room_.wing else [m for m in room_.modules if m in modules()]


def _wrapped(names: Sequence[str], width: float) -> str:
    lines = [""]
    for name in names:
        longer = f"{lines[-1]}   {name}" if lines[-1] else name
        if len(longer) > 14.5 * width and lines[-1]:
            lines.append(name)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _imports_of_wings() -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """Where an arrow goes from a wing to a room of the core that it imports from."""
    places = {r.name: r.place for r in ROOMS}
    pairs = {(room(m), room(other)) for m, others in imports().items() for other in others}
    for here, other in sorted(pairs):
        # Information and Probes share an arrow.
        if here == other or other in ("", "Cellar", "Information"):
            continue
        left, bottom, width, height = places[other]
        if here == "Audit wing":
            yield (places[here][0] - 0.06, bottom + height / 2), (left + width + 0.06, bottom + height / 2)
        elif here == "Run":
            top = places[here][1] + places[here][3]
            x = left + width / 2 if other in ("Page", "Audit wing") else -0.05
            end = (x, bottom - 0.06) if x > 0.1 else (left - 0.06, bottom + height / 2)
            yield (x, top + 0.06), end


def _arrow(ax: "Axes", start: tuple[float, float], end: tuple[float, float], colour: str, width: float) -> None:
    bent = {"connectionstyle": "angle,angleA=90,angleB=0,rad=0"} if start[0] < 0 else {}
    style = {"arrowstyle": "-|>", "color": colour, "lw": width, "shrinkA": 0, "shrinkB": 0} | bent
    ax.annotate("", end, start, arrowprops=style)


def pages() -> dict[str, str]:
    """The pages of the API: a table of all modules, and a page for each room."""
    rows = ["| module | what it is for |", "|---|---|"]
    texts = {}
    for r in ROOMS:
        slug = r.name.lower().replace(" ", "_")
        parts = [f"# {r.name}" + ("" if r.name == "Audit wing" else " (API)")]
        for name, path in modules().items():
            if room(name) == r.name:
                first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
                rows.append(f"| [`{name}`](api_{slug}.md) | {' '.join(first.split())} |")
                title = f"## `ridge_utils.{name}`"
                directive = f".. automodule:: ridge_utils.{name}\n   :members:\n   :show-inheritance:"
                parts.append(f"{title}\n\n```{{eval-rst}}\n{directive}\n```")
        texts[f"api_{slug}.md"] = "\n\n".join(parts) + "\n"
    intro = (
        "# API\n\nEvery module, room by room as in [](architecture.md); `ridge_utils.` is left out before the names."
    )
    return {"api.md": f"{intro}\n\n" + "\n".join(rows) + "\n"} | texts
