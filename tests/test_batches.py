"""Batches: each example once, smaller ones where memory runs out, and nothing else forgiven."""

from functools import partial

import pytest
import torch

from ridge_utils import attention, generation, tasks
from ridge_utils.batches import progress_bar, work_through
from ridge_utils.errors import InputError
from ridge_utils.representations import collect
from ridge_utils.residual_scaling import evaluate
from ridge_utils.tasks import Example

BAR = progress_bar("", False, 0)


class Device:
    """A device with room for so many examples at a time."""

    def __init__(self, room):
        self.room = room
        self.done = []

    def __call__(self, batch):
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        self.done.append(batch)


@pytest.mark.parametrize(("room", "sizes"), [(99, [8, 3]), (5, [4, 4, 3]), (1, [1] * 11)])
def test_every_example_is_done_once_whatever_the_room(room, sizes):
    device = Device(room)
    work_through(range(11), 8, device, BAR)
    assert [len(batch) for batch in device.done] == sizes
    assert [index for batch in device.done for index in batch] == list(range(11))


def test_one_example_that_does_not_fit_is_an_error_with_a_remedy():
    with pytest.raises(InputError, match="Example 0"):
        work_through(range(3), 2, Device(0), BAR)


def test_another_error_is_not_taken_for_a_lack_of_memory():
    def broken(_batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        work_through(range(3), 2, broken, BAR)


def test_the_cpu_s_own_words_are_understood():
    # More than any machine has; the allocator refuses it at once.
    sizes = []

    def work(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            torch.empty(2**55, dtype=torch.uint8)

    work_through(range(4), 4, work, BAR)
    assert sizes == [4, 2, 2]


LONG = Example("S1 N1 " * 30 + "S", " 1 N2 S3", "id", "own", ((0, 2),))
DECODING = [partial(run, steps=1) for run in (generation.greedy, generation.reference)]


@pytest.mark.parametrize("function", [collect, evaluate, attention.shares, *DECODING])
def test_results_depend_neither_on_batches_nor_on_company(loaded, function):
    examples = tasks.load("synthetic_arithmetic", "id", 9)
    alone = function(loaded, examples, batch_size=1, progress=False)
    together = function(loaded, [LONG, *examples], batch_size=99, progress=False)
    for name, value in vars(alone).items():
        same = getattr(together, name).narrow(list(value.shape).index(9), 1, 9)
        torch.testing.assert_close(same, value, atol=1e-4, rtol=0)


@pytest.mark.parametrize("function", [collect, evaluate, attention.shares])
def test_results_do_not_depend_on_the_room(llama, function, monkeypatch):
    examples = tasks.load("synthetic_arithmetic", "id", 7)
    roomy = function(llama, examples, batch_size=7, progress=False)
    passes = []
    forward = llama.model.base_model.forward

    def narrow(*args, **kwargs):
        passes.append(len(kwargs["input_ids"]))
        if passes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(*args, **kwargs)

    monkeypatch.setattr(llama.model.base_model, "forward", narrow)
    narrowed = function(llama, examples, batch_size=7, progress=False)
    assert passes[:2] == [7, 3]
    for name, value in vars(roomy).items():
        torch.testing.assert_close(getattr(narrowed, name), value, atol=1e-5, rtol=1e-5)
