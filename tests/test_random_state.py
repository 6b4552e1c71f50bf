"""The states of generators, as a checkpoint keeps them."""

import io
import random

import numpy as np
import torch

from lit_tbptt.random_state import random_state, set_random_state, shared_generator, sharing


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


def test_noise_that_processes_share_is_drawn_from_torchs_generator_alone_or_from_theirs():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (torch.rand(4, generator=shared_generator()) for _ in range(2))
    assert not torch.equal(first, second)
    torch.set_rng_state(before)
    assert torch.equal(torch.rand(4, generator=shared_generator()), first)

    theirs, before = torch.Generator().manual_seed(7), torch.get_rng_state()
    with sharing(theirs):
        saved = random_state()
        expected = [torch.rand(4, generator=shared_generator()) for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), before)
        set_random_state(saved)
        assert torch.equal(torch.rand(4, generator=shared_generator()), expected[0])
        with sharing(torch.Generator().manual_seed(7)):
            assert torch.equal(torch.rand(4, generator=shared_generator()), expected[0])
        assert torch.equal(torch.rand(4, generator=shared_generator()), expected[1])
    set_random_state(saved)  # what is no longer shared is passed over
    assert "shared" not in random_state()
    with torch.device("meta"):
        assert shared_generator().device.type == "cpu"
