"""The states of generators, as a checkpoint keeps them."""

import io
import random

import numpy as np
import torch

from lit_tbptt.random_state import random_state, set_random_state


def draws():
    legacy = np.random.normal(), np.random.random()  # noqa: NPY002 - as users do
    return random.gauss(0, 1), random.random(), *legacy, torch.randn(()).item(), torch.rand(()).item()


def test_they_continue_between_the_two_numbers_of_a_normal_pair():
    random.seed(3)
    np.random.seed(5)  # noqa: NPY002
    draws()  # Python and NumPy make normal numbers in pairs, and keep the second
    file = io.BytesIO()
    torch.save(random_state(), file)
    expected = draws()
    draws()
    file.seek(0)
    set_random_state(torch.load(file, weights_only=True))
    assert draws() == expected
