"""What a page says: the numbers in its sentences, and the facts that the sentences rest on.

Sentences are written in Markdown. A number in one is glued by :func:`glue`, and stands there as
``{glue:text}`name:.3f```; what a sentence says without a number ("the peak lies before the last block") is a fact, a
named value that :func:`state` prints in the cell that nbval compares.
"""

from collections.abc import Mapping
from numbers import Integral, Real

from ridge_utils.outputs import GLUED


def glue(**numbers: float | int | str) -> dict[str, float | int | str]:
    """Make numbers, or computed texts such as a layer's name, available to the sentences of the page.

    Gives the same as plain Python numbers, for :func:`state`.
    """
    from IPython.display import display

    plain = {name: _plain(value) for name, value in numbers.items()}
    for name, value in plain.items():
        # What myst_nb.glue(name, value, display=False) does; a run needs the builder of books for nothing else.
        scrapbook = {"name": name, "mime_prefix": GLUED.removesuffix("text/plain")}
        display({GLUED: repr(value)}, raw=True, metadata={"scrapbook": scrapbook})
    return plain


def state(facts: Mapping[str, bool | int | float | str]) -> None:
    """Print facts, a line each: ``name: value``; numbers to four significant digits, yes or no for a truth.

    nbval compares the lines, so one that no longer holds turns the page red under its own name.
    """
    for name, value in facts.items():
        value = _plain(value)
        shown = (
            ("no", "yes")[value] if isinstance(value, bool) else f"{value:.4g}" if isinstance(value, float) else value
        )
        print(f"{name}: {shown}")


def _plain(value: object) -> bool | int | float | str:
    if isinstance(value, str):
        return value
    # numpy's own numbers print their type, which glue could not format.
    if isinstance(value, bool) or type(value).__name__ == "bool":
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) + 0.0  # no -0.0
    raise TypeError(f"A page states numbers, truths and texts, not {type(value).__name__}.")
