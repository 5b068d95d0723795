"""What a task is: examples with a prompt, a target, a split and the place of the signal."""

from dataclasses import dataclass
from typing import Literal, get_args

Split = Literal["train", "id", "ood"]
Source = Literal["synthetic", "hub", "local", "own"]

SPLITS: tuple[str, ...] = get_args(Split)

#: Most examples that a task without an end makes; they all lie in the memory.
MOST = 200_000


@dataclass(frozen=True)
class Example:
    """One prompt and what should follow it."""

    #: text that the model reads; its last token's state is measured
    prompt: str
    #: text that continues the prompt without anything between them
    target: str
    #: ``train``, ``id`` (in-distribution) or ``ood`` (out-of-distribution)
    split: Split
    #: where the example comes from; made by this project, a Hub data set, a local copy of one, or the user's own file
    source: Source
    #: half-open character ranges of the prompt that hold the signal, in order
    signal_spans: tuple[tuple[int, int], ...] = ()
