"""A user's own task: a JSON Lines file, one example a line.

    {"prompt": "2 + 2 =", "target": " 4", "split": "id", "signal_spans": [[0, 1], [4, 5]]}

``split`` is ``train``, ``id`` or ``ood``. ``signal_spans``, optional, are half-open character ranges of the prompt.
The target continues the prompt as written: a space between the two belongs to one of them.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, StrictInt, ValidationInfo, field_validator

from ridge_utils.errors import named
from ridge_utils.tasks import sources
from ridge_utils.tasks.base import Example, Split

_NotEmpty = Annotated[str, Field(min_length=1, max_length=10**6, description="a text of 1 to 1,000,000 characters")]


class _Row(BaseModel, extra="forbid"):
    prompt: _NotEmpty
    target: _NotEmpty
    split: Split = Field(description="one of train, id, ood")
    signal_spans: list[Annotated[list[StrictInt], Field(min_length=2, max_length=2)]] = Field(
        default=[], description="a list of [start, end] with 0 <= start < end <= the prompt's length"
    )

    @field_validator("signal_spans")
    @classmethod
    def _lie_in_the_prompt(cls, spans: list[list[int]], info: ValidationInfo) -> list[list[int]]:
        if not all(0 <= start < end <= len(info.data.get("prompt", "")) for start, end in spans):
            raise ValueError
        return spans


def load(path: Path, split: Split, n: int | None, seed: int = 0) -> list[Example]:
    """The examples of one split of the file ``path``; every line is checked, also those of the other splits."""
    rows = [sources.parse(_Row, row, where) for where, row in sources.read_json_lines(path)]
    examples = [
        Example(row.prompt, row.target, split, "own", tuple((start, end) for start, end in row.signal_spans))
        for row in rows
        if row.split == split
    ]
    return sources.draw(f"the {split} split of {named(str(path))}", examples, n, f"{split}/{seed}")
