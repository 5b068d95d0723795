"""Run the campaign, print a table, and with ``--store`` keep its figures in ``results/campaign.csv``."""

import argparse
import importlib
import os
import random
import sys
import time

import pandas as pd
from rich.console import Console
from rich.table import Table

from ridge_utils import results
from tests.campaign.cases import LIMIT, faults

#: How many cases of each kind; the order is that in which they run.
COUNTS = {"functions": 2500, "inputs": 2500, "folders": 400, "kills": 20, "together": 4, "full": 8, "files": 1000}
#: Kinds whose cases are several whole runs of commands, one after the other.
WHOLE_RUNS = {"kills", "together", "full"}


def main() -> int:
    """Give the exit status: 1 if there was a fault."""
    parser = argparse.ArgumentParser(prog="make campaign", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(COUNTS)}; default: all")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="default: a new one each time")
    parser.add_argument("--count", type=int, help="cases of each kind")
    parser.add_argument("--store", action="store_true", help="maintainers: keep the figures in results/campaign.csv")
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(COUNTS):
        parser.error(f"there is no kind {sorted(unknown)[0]!r}; choose from {', '.join(COUNTS)}")
    print(f"The seed is {options.seed}; --seed {options.seed} makes the same cases again.", flush=True)
    rows, found = [], []
    for kind in options.kinds or COUNTS:
        made = importlib.import_module(f"tests.campaign.{kind}")
        started, count, wrong = time.monotonic(), 0, 0
        wanted = options.count or COUNTS[kind]
        limit = 10 * LIMIT if kind in WHOLE_RUNS else LIMIT
        for case, fault in faults(made.cases(random.Random(f"{options.seed} {kind}"), wanted), limit):
            count += 1
            if fault:
                wrong += 1
                found.append(fault)
                print(f"FAULT {fault.kind}: {fault.name}\n    {fault.what}", flush=True)
            if count % max(1, wanted // 10) == 0:
                print(f"  {kind}: {case.name[:80]} ({count} of {wanted}, {wrong} faults)", flush=True)
        seconds = round(time.monotonic() - started, 1)
        rows.append({"kind": kind, "cases": count, "faults": wrong, "seconds": seconds, "seed": options.seed})
        if options.store:  # each time: an interrupted campaign keeps what it has
            _store(rows[-1])
    shown = Table(*rows[0])
    for row in rows:
        shown.add_row(*map(str, row.values()))
    Console().print(shown)
    return 1 if found else 0


def _store(row: dict[str, object]) -> None:
    """Put the figures of a kind in the place of its earlier ones, with the commit and the date that they are of."""
    origin = results.provenance({})
    row |= {"date": origin["date"], "commit": str(origin["commit"])[:9]}
    path = results.FOLDER / "campaign.csv"
    kept = results.read(path)[0]
    rows = pd.concat([kept[kept["kind"] != row["kind"]], pd.DataFrame([row])])
    rows = rows.sort_values("kind", key=lambda kinds: kinds.map(list(COUNTS).index), ignore_index=True)
    results.write(rows, path, origin)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
