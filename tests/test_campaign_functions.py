"""Bad tensors and numbers in the arguments of the public functions: a part of the campaign with a fixed seed."""

import random

import pytest

from tests.campaign import functions
from tests.campaign.cases import faults


@pytest.mark.parametrize("name", functions.public())
def test_good_arguments_are_taken(name):
    function = functions.public()[name]
    functions.call(function, functions.arguments(name, function))


def test_bad_arguments_are_refused_by_name():
    found = [fault for _, fault in faults(functions.cases(random.Random(0), 800)) if fault]
    assert not found
