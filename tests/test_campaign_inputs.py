"""The fast part of the campaign's bad inputs, and that what is refused before a kernel starts is what there is."""

import itertools
import random
from typing import get_args

import pytest

from ridge_utils import information, notebooks, sequences, training
from ridge_utils.audit import block_effects
from tests.campaign import inputs
from tests.campaign.cases import Case, faults

MAKERS = (inputs._parameters, inputs._fields, inputs._options, inputs._task_options, inputs._files, inputs._environment)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_bad_input_is_one_sentence(maker):
    made = itertools.islice(maker(random.Random(1)), 80)
    assert not [fault for _, fault in faults(Case("inputs", name, run) for name, run in made) if fault]


@pytest.mark.parametrize(
    ("parameter", "known"),
    [
        ("kernel", get_args(information.Kernel)),
        ("precision", get_args(training.Precision)),
        ("pairs", get_args(sequences.Pairs)),
        ("variants", tuple(block_effects.VARIANTS)),
    ],
)
def test_choices_of_a_parameter_are_those_of_the_function_that_it_goes_to(parameter, known):
    assert set(notebooks._CHOICES[parameter]) == set(known)
