"""Words and numbers as the sentences and tables of every page write them."""

import hashlib
from collections.abc import Iterable

import pandas as pd
from pandas.io.formats.style import Styler


def when(step: int) -> str:
    """A checkpoint in a sentence: ``untouched``, ``after 50 fine-tuning steps``."""
    return f"after {int(step)} fine-tuning step{'s' if step > 1 else ''}" if step else "untouched"


def listed(items: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``; nothing of nothing."""
    found = list(items)
    return " and ".join(filter(None, [", ".join(found[:-1]), *found[-1:]]))


def capital(text: str) -> str:
    """A text with its first letter in upper case, the others as they are."""
    return f"{text[:1].upper()}{text[1:]}"


def sentence(text: str) -> str:
    """A text with a capital at its beginning and a full stop at its end; nothing of nothing."""
    return f"{capital(text)}." if text else ""


def number(value: float, digits: int, sign: str = "") -> str:
    """A number with so many decimals, – where there is none; ``sign="+"`` writes the plus as well."""
    # + 0.0, or a rounded -0.0001 would read -0.000.
    return "–" if pd.isna(value) else f"{round(float(value), digits) + 0.0:{sign}.{digits}f}"


def styled(shown: pd.DataFrame, caption: str) -> Styler:
    """A table for people, without its index; its id goes by its content, so that an executed page stays the same."""
    content = caption + shown.to_csv(index=False)
    table_id = hashlib.sha256(content.encode()).hexdigest()[:8]
    return shown.style.hide(axis="index").set_caption(caption).set_uuid(table_id)
