"""What a case of the campaign is, and the checks that its kinds share."""

import re
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType

#: Seconds after which a case counts as hanging.
LIMIT = 60
#: An error is one sentence, or two, for a reader: none of these.
_NOT_FOR_READERS = re.compile(r"Traceback|File \"|object at 0x|\bat 0x[0-9a-f]{6}|^\s*$")


@dataclass(frozen=True)
class Case:
    """One thing done to the project."""

    #: kills, inputs, functions, files, folders, together or full: the module that makes it
    kind: str
    #: what is done, exactly enough to do it again
    name: str
    #: does it; gives the empty text if the project did as it should, else what was wrong, in one line
    run: Callable[[], str]


@dataclass(frozen=True)
class Fault:
    """A case in which the project did not do as it should."""

    kind: str
    name: str
    what: str


class _Hangs(BaseException):
    """Not an Exception, so that nothing in the project takes it for one of its own."""


def faults(cases: Iterable[Case], limit: float = LIMIT) -> Iterator[tuple[Case, Fault | None]]:
    """Run cases one after the other, each with its fault or None; a case past the ``limit`` in seconds hangs."""

    def hangs(_signal: int, _frame: FrameType | None) -> None:
        raise _Hangs

    before = signal.signal(signal.SIGALRM, hangs)
    try:
        for case in cases:
            signal.setitimer(signal.ITIMER_REAL, limit)
            try:
                what = case.run()
            except _Hangs:
                what = f"hangs: not done after {limit:.0f} s"
            except BaseException as error:  # what a case lets through is the fault
                frame = traceback.extract_tb(error.__traceback__)[-1]
                what = f"{type(error).__name__}: {error} ({frame.filename.rpartition('/')[2]}:{frame.lineno})"
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            yield case, Fault(case.kind, case.name, " ".join(what.split())[:400]) if what else None
    finally:
        signal.signal(signal.SIGALRM, before)


def sentence(text: str, longest: int = 600) -> str:
    """Why a message is none for a reader; empty if it is a clear one."""
    if match := _NOT_FOR_READERS.search(text):
        return f"not a sentence for a reader ({match.group()!r}): {text!r}"
    return f"{len(text)} characters: {text!r}" if len(text) > longest else ""
