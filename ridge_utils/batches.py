"""Work through examples in batches, in smaller ones where a batch does not fit into the device's memory."""

import logging
from collections.abc import Callable, Sequence

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from tqdm import tqdm

from ridge_utils.errors import InputError

log = logging.getLogger(__name__)


def work_through(
    order: Sequence[int],
    batch_size: int,
    work: Callable[[list[int]], None],
    bar: tqdm,
    largest: Callable[[int], int] | None = None,
) -> None:
    """Call ``work`` with one batch of ``order`` after the other.

    Where the device (or the machine) runs out of memory, the batch is halved and done again, and the later ones are no
    larger; a warning says so. Order the prompts by length, so that it happens once and no padding is wasted.

    Args:
        order: indices of the examples.
        work: does a batch; it may be called again with a part of what it has already begun.
        largest: most examples that a batch may have that begins with a given one.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, but is {batch_size}.")
    left = list(order)
    size = batch_size
    while left:
        batch = left[: size if largest is None else min(size, largest(left[0]))]
        if _fits(work, batch):
            left = left[len(batch) :]
            bar.update(len(batch))
        elif len(batch) == 1:
            raise InputError(
                f"Example {batch[0]} does not fit into the device's memory even alone: shorten it, load the model in a "
                "narrower dtype, or spread it over more devices (device='balanced')."
            )
        else:
            # Not before the error is forgotten, for it holds on to the tensors of the failed batch.
            clear_device_cache(garbage_collection=True)
            size = len(batch) // 2
            log.warning("A batch of %d ran out of memory; going on with batches of %d.", len(batch), size)


def progress_bar(what: str, progress: bool | str, total: int) -> tqdm:
    """A bar for so many prompts, with the text of ``progress`` in its label; none is shown where that is False."""
    label = f"{what}, {progress}" if isinstance(progress, str) else what
    return tqdm(total=total, desc=label, unit="prompt", disable=not progress)


def _fits(work: Callable[[list[int]], None], batch: list[int]) -> bool:
    try:
        work(batch)
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    return True
