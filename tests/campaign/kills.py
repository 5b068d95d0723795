"""Kills at random moments of a run, of set-up, of a page, of a sweep's worker and of the sweep itself.

The same command then ends well, finds the same bytes, and leaves neither processes nor files behind.
"""

import contextlib
import os
import random
import re
import signal
import time
from collections.abc import Iterator

from tests.campaign import commands
from tests.campaign.cases import Case
from tests.campaign.commands import PAGE, RUN, SETUP, SWEEP, Job

#: Whom a kill meets: the command itself, at once or when it has such a process, or the process with these words.
_VICTIMS = {"command": "", "kernel": "ipykernel", "kernel's command": "ipykernel", "worker": "spawn_main"}
#: Jobs, victims and signals in the order in which they are taken; the moments are random.
_KINDS = (
    (RUN, "command", signal.SIGKILL),
    (SWEEP, "worker", signal.SIGKILL),
    (RUN, "kernel", signal.SIGKILL),
    (SETUP, "command", signal.SIGKILL),
    (SWEEP, "command", signal.SIGKILL),
    (RUN, "command", signal.SIGINT),
    (RUN, "command", signal.SIGTERM),
    (SWEEP, "command", signal.SIGINT),
    (PAGE, "command", signal.SIGKILL),
    (SWEEP, "kernel", signal.SIGKILL),
    (SETUP, "command", signal.SIGINT),
    (RUN, "command", signal.SIGKILL),
    (SWEEP, "command", signal.SIGTERM),
    (SWEEP, "kernel's command", signal.SIGKILL),
)


def cases(rng: random.Random, count: int) -> Iterator[Case]:
    """Kills, kind after kind, each at a random part of the job's time."""
    for number in range(count):
        job, victim, sent = _KINDS[number % len(_KINDS)]
        moment = rng.random()
        name = f"{sent.name} to the {victim} of a {job.name} after {moment:.0%} of its time"
        yield Case("kills", name, lambda job=job, victim=victim, sent=sent, at=moment: kill(job, victim, sent, at))


def kill(job: Job, victim: str, sent: signal.Signals, moment: float) -> str:
    """Kill, look at what was said and left, and run the same again."""
    seconds = commands.undisturbed(job)[1]
    with commands.place() as here:
        process = here.start(job)
        time.sleep(seconds * moment)
        found = [process.pid]
        if victim != "command":
            until = time.monotonic() + seconds
            while process.poll() is None and time.monotonic() < until:
                found = [number for number, line in here.processes().items() if re.search(_VICTIMS[victim], line)]
                if found:
                    break
                time.sleep(0.1)
        if process.poll() is None and found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid if "command" in victim else found[-1], sent)
        said = process.communicate()[0]
        if problem := commands.noise(said):
            return problem
        if sent == signal.SIGINT and process.returncode not in (0, 130):
            return f"an interrupt ends with {process.returncode}: {said[-200:]}"
        if victim == "worker" and process.returncode:
            return f"the sweep does not go on without the worker: {said[-300:]}"
        return here.whole(job)
