"""Mistakes in a core of one's own: each ends in one message that names the core, in training and in generation."""

import pytest
import torch
from torch import nn

from lit_tbptt import LSTM, Cell, InputError, RecurrentCore, RecurrentLM, Stack, Truncation, Window

LANES, STEPS, FEATURES = 3, 5, 4
IDS = torch.arange(LANES * STEPS).view(LANES, STEPS) % 11


class Leaky(Cell):
    """h_t = h_{t-1} / 2 + x_t, with a learned start and a counter; a test says what else `step` does."""

    mistake = staticmethod(lambda output, state: (output, state))

    def __init__(self):
        super().__init__()
        self.input_size = self.output_size = FEATURES
        self.first = nn.Parameter(torch.zeros(FEATURES))

    def initial_state(self, num_lanes):
        return {"h": self.first.expand(num_lanes, -1), "n": torch.zeros(num_lanes, dtype=torch.long)}

    def step(self, x, state):
        h = state["h"] / 2 + x
        return self.mistake(h, {"h": h, "n": state["n"] + 1})


class Whole(RecurrentCore):
    """The sum of the inputs so far, without a loop; a test says what else `forward` does."""

    mistake = staticmethod(lambda outputs, state: (outputs, state))

    def __init__(self):
        super().__init__()
        self.input_size = self.output_size = FEATURES

    def initial_state(self, num_lanes):
        return torch.zeros(num_lanes, FEATURES)

    def forward(self, inputs, state):
        outputs = state[:, None] + inputs.cumsum(1)
        return self.mistake(outputs, outputs[:, -1])


def trained(core, **options):
    return Truncation(STEPS, **options)(RecurrentLM(11, core), Window(IDS, IDS))


RUNS = {
    "trained": trained,
    "with a context": lambda core: trained(core, k2=STEPS + 2),  # the far edge is inside the first window
    "recomputed": lambda core: trained(core, recompute_every=2),
    "in a stack": lambda core: trained(Stack([core, LSTM(FEATURES)])),
    "generating": lambda core: RecurrentLM(11, core).generate(IDS.tolist(), 2),
    "generating in a stack": lambda core: RecurrentLM(11, Stack([core, LSTM(FEATURES)])).generate(IDS.tolist(), 2),
}


@pytest.fixture(params=RUNS)
def run(request):
    return RUNS[request.param]


@pytest.mark.parametrize("core", [Leaky, Whole])
def test_without_a_mistake_it_runs(run, core):
    run(core())


@pytest.mark.parametrize(
    ("base", "mistake", "message"),
    [
        (Leaky, lambda h, state: h, r"^Odd\.step returned a Tensor: it must return the outputs and the state"),
        (Whole, lambda h, state: (h, state, h), r"^Odd\.forward returned a tuple of 3 values: it must return the outp"),
        (
            Leaky,
            lambda h, state: (torch.cat([h, h], -1), state),
            r"^Odd returned outputs of \(3, \d, 8\): they must be \(3, \d, 4\), as the inputs and output_size=4 say",
        ),
        (Whole, lambda h, state: (h[:, -1], state), r"^Odd returned outputs of \(3, 4\): they must be \(3, \d, 4\)"),
        (
            Leaky,
            lambda h, state: (h, [*state.values()]),
            r"^Odd was given a state of \{'h': \(3, 4\), 'n': \(3,\)\} and returned one of \[\(3, 4\), \(3,\)\]: its",
        ),
        (
            Whole,
            lambda h, state: (h, state.double()),
            r"^Odd was given a state of torch.float32 and returned torch.float64: its dtype must stay the same; make",
        ),
        (
            Leaky,
            lambda h, state: (h.double(), state),
            r"^Odd returned outputs of torch.float64 for inputs of torch.float32: cast them, outputs.to",
        ),
        (
            Whole,
            lambda h, state: (h, h),
            r"^Odd was given a state of \(3, 4\) and returned \(3, \d, 4\): its shape must stay the same; carry",
        ),
        (
            Leaky,
            lambda h, state: (None, state),
            r"^Odd returned outputs of NoneType: they must be \(3, 4\), as the inp",
        ),
        (Whole, lambda h, state: (h, None), r"^Odd was given a state of \(3, 4\) and returned a NoneType: return the"),
    ],
)
def test_what_a_core_may_not_return(run, base, mistake, message):
    odd = type("Odd", (base,), {"mistake": staticmethod(mistake)})
    with pytest.raises(InputError, match=message):
        run(odd())


def test_a_start_whose_lanes_share_their_memory_is_not_written_to(run):
    class InPlace(Leaky):
        def step(self, x, state):
            state["h"].mul_(0.5)
            return state["h"], state

    core = InPlace()
    with pytest.raises(InputError, match=r"^InPlace: (state\['h'\]|a tensor of the state) was changed in place"):
        run(core)
    assert core.first.tolist() == [0] * FEATURES


def test_an_error_of_a_later_time_step_is_that_of_the_state_returned_before():
    class Widening(Leaky):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(FEATURES, FEATURES)

        def step(self, x, state):
            h = self.mix(state["h"]) + x
            return h, state | {"h": h.double()}

    with pytest.raises(
        InputError, match=r"^Widening was given state\['h'\] of torch.float32 and returned torch.float64"
    ):
        trained(Widening())


def test_an_error_of_another_kind_is_not_mistaken_for_one_of_the_state():
    class Other(Whole):
        def forward(self, inputs, state):
            torch.zeros(1).expand(2).mul_(2)

    with pytest.raises(RuntimeError, match="written-to tensor"):
        trained(Other())


def test_a_state_that_is_no_tensor_is_found_in_generation_too():
    class Counting(Leaky):
        def initial_state(self, num_lanes):
            return super().initial_state(num_lanes) | {"n": 0}

    with pytest.raises(InputError, match=r"a state is made of tensors .* state\['n'\] is a int"):
        RUNS["generating"](Counting())


class NoSuper(Leaky):
    def __init__(self):
        self.input_size = self.output_size = FEATURES


class NoSize(Whole):
    def __init__(self):
        nn.Module.__init__(self)
        self.input_size = FEATURES


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (NoSuper, r"^core: NoSuper\.__init__ does not call super\(\).__init__\(\); call it first"),
        (NoSize, r"^core: NoSize has no output_size; set self.input_size and self.output_size in its __init__"),
    ],
)
@pytest.mark.parametrize("use", [lambda core: RecurrentLM(11, core), lambda core: Stack([core])])
def test_what_a_constructor_may_not_leave_out(make, message, use):
    with pytest.raises(InputError, match=message):
        use(make())


def test_under_autocast_another_dtype_is_accepted():
    with torch.autocast("cpu", torch.bfloat16):
        trained(type("Halved", (Whole,), {"mistake": staticmethod(lambda h, state: (h, state.bfloat16()))})())
