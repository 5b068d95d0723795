"""Two processes at once: one run twice, two sweeps over one folder, two runs of one training, a cache cleared."""

import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace

from tests.campaign import commands
from tests.campaign.cases import Case
from tests.campaign.commands import RUN, SWEEP, Job

_OTHER = replace(RUN, arguments=(*RUN.arguments[:-1], "other/y.ipynb"), found="other/y.csv")


def cases(rng: random.Random, count: int) -> Iterator[Case]:
    """Pairs, one after the other, the second some seconds after the first."""
    pairs = (("one run twice", RUN, RUN), ("two sweeps over one folder", SWEEP, SWEEP), ("one training", RUN, _OTHER))
    for number in range(count):
        after = rng.random() * 6
        if number % 4 == 3:
            yield Case("together", f"the cache cleared {after:.1f} s after", lambda after=after: cleared(RUN, after))
            continue
        name, first, second = pairs[number % 4]
        run = lambda first=first, second=second, after=after: both(first, second, after)  # noqa: E731
        yield Case("together", f"{name}, {after:.1f} s apart", run)


def both(first: Job, second: Job, after: float) -> str:
    """Two commands in one place: both end well and find what one alone finds."""
    with commands.place() as here:
        one = here.start(first)
        time.sleep(after)
        other = here.start(second)
        for job, process in ((first, one), (second, other)):
            said = process.communicate()[0]
            if process.returncode or commands.noise(said):
                return f"{job.name} ends with {process.returncode}: {said[-300:]}"
            if job.digest(here.folder) != commands.undisturbed(first)[0]:
                return f"{job.found} is another table"
        return here.left()


def cleared(job: Job, after: float) -> str:
    """The cache goes while a run uses it: it ends well or says why not, and then finds the same."""
    with commands.place() as here:
        process = here.start(job)
        time.sleep(after)
        shutil.rmtree(here.folder / "cache", ignore_errors=True)
        said = process.communicate()[0]
        if process.returncode and not commands.error(said):
            return f"no sentence: {said[-300:]}"
        return commands.noise(said) or here.whole(job)
