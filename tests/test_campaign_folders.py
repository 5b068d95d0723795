"""The fast part of the campaign's broken and hostile model folders."""

import random

from tests.campaign import folders
from tests.campaign.cases import faults


def test_what_is_loaded_from_a_folder_is_what_lies_in_it():
    found = [fault for _, fault in faults(folders.cases(random.Random(0), 60)) if fault]
    assert not found
