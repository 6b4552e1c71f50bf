"""TorchCore: any module `(inputs, state) -> (outputs, state)` as a core, and what is refused."""

import copy

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.testing import assert_close

import lit_tbptt
from lit_tbptt import InputError, LitLanguageModel, TextLanesDataModule, TextModel, TorchCore
from lit_tbptt.cores.checks import check_core
from lit_tbptt.random_state import random_state

LANES, STEPS, FEATURES, UNITS = 3, 11, 7, 5
TEXTS = ["".join(chr(97 + (i * j) % 23) for j in range(i * i % 41)) for i in range(60)]


class Summing(nn.Module):
    """A state that a test chooses: `kind` says what is wrong with it."""

    def __init__(self, kind="", size=FEATURES):
        super().__init__()
        self.kind, self.input_size, self.output_size = kind, size, size
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, inputs, state):
        if state is None:
            state = {"sum": inputs.new_zeros(len(inputs), self.input_size)}
            if self.kind == "ones":
                state["sum"] += 1
        total = state["sum"]
        if self.kind == "in place":
            total += inputs.sum(1)
            return inputs, {"sum": total}
        sums = total[:, None] + self.gain * inputs.cumsum(1)
        outputs = sums[..., :-1] if self.kind == "outputs" else sums
        after = {"sum": sums[:, -1]}
        if self.kind == "shape":
            after = {"sum": sums}
        elif self.kind == "structure" and inputs.shape[1] > 1:
            after = [sums[:, -1]]
        elif self.kind == "count":
            after["count"] = 3
        return (outputs, after, 1) if self.kind == "three" else (outputs, after)


def inputs_of(dtype=torch.float32):
    return torch.randn(LANES, STEPS, FEATURES, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_torch_lstm_is_the_core_lstm(batch_first):
    module = nn.LSTM(FEATURES, UNITS, 2, batch_first=batch_first)
    core, ours = (
        TorchCore(module, lane_axis=1, time_first=not batch_first),
        lit_tbptt.LSTM(UNITS, 2, input_size=FEATURES),
    )
    ours.rnn[0].load_state_dict(module.state_dict())
    assert (core.input_size, core.output_size) == (FEATURES, UNITS)
    outputs, state = core(inputs_of(), core.initial_state(LANES))
    expected, after = ours(inputs_of(), ours.initial_state(LANES))
    assert_close((outputs, [*state]), (expected, [*after.values()]))
    assert [leaf.shape for leaf in core.initial_state(4)] == [(4, 2, UNITS)] * 2


def test_sizes_of_projections_and_of_arguments():
    assert TorchCore(nn.LSTM(FEATURES, UNITS, proj_size=2, batch_first=True), 1).output_size == 2

    class Bare(nn.Module):
        def forward(self, inputs, state):
            return inputs[..., :2], state

    with pytest.raises(InputError, match="input_size: Bare has no attribute that says it; give input_size"):
        TorchCore(Bare())
    assert TorchCore(Bare(), input_size=4, output_size=2).output_size == 2


def test_a_lane_axis_for_every_leaf():
    class Two(Summing):
        def forward(self, inputs, state):
            if state is None:
                state = (inputs.new_zeros(len(inputs), FEATURES), inputs.new_zeros(2, 4, len(inputs)))
            outputs, after = super().forward(inputs, {"sum": state[0]})
            return outputs, (after["sum"], state[1] + outputs.sum((1, 2)))

    core = TorchCore(Two(), lane_axis=(0, 2))
    state = core.initial_state(LANES)
    assert [leaf.shape for leaf in state] == [(LANES, FEATURES), (LANES, 2, 4)]
    outputs, after = core(inputs_of(), state)
    assert_close(after[1], outputs.sum((1, 2))[:, None, None].expand(-1, 2, 4))
    with pytest.raises(InputError, match=r"lane_axis=\(0, 1\): Two has a state of .* for 3 lanes"):
        TorchCore(Two(), lane_axis=(0, 1)).initial_state(LANES)
    with pytest.raises(InputError, match=r"lane_axis=\[0\]: must be a number, or have the structure"):
        TorchCore(Two(), lane_axis=[0]).initial_state(LANES)


def test_a_forgotten_lane_axis_is_found_out():
    with pytest.raises(InputError, match=r"lane_axis=0: LSTM has a state of \(\(1, 3, 5\), .* for 3 lanes"):
        TorchCore(nn.LSTM(FEATURES, UNITS, batch_first=True)).initial_state(1)  # one lane would fit one layer


@pytest.mark.parametrize("name", ["initial_state", "init_state", "argument"])
def test_a_learned_initial_state_has_a_gradient(name):
    module = nn.GRU(FEATURES, UNITS, batch_first=True)
    module.start = nn.Parameter(torch.ones(1, 1, UNITS))

    def start(num_lanes):
        return module.start.expand(-1, num_lanes, -1)

    if name != "argument":
        setattr(module, name, start)
    core = TorchCore(module, lane_axis=1, initial_state=start if name == "argument" else None)
    state = core.initial_state(LANES)
    assert state.shape == (LANES, 1, UNITS)
    core(inputs_of(), state)[0].sum().backward()
    assert module.start.grad.abs().sum() > 0


def test_the_initial_state_is_looked_for_without_a_trace():
    class Noisy(Summing):
        def forward(self, inputs, state):
            torch.rand(3)
            assert not self.training
            return super().forward(inputs, state)

    core = TorchCore(nn.Sequential(), input_size=FEATURES, output_size=FEATURES)
    core.module = Noisy().train()
    core.module.frozen = nn.Dropout().eval()
    before = random_state()["torch"]
    assert core.initial_state(2)["sum"].shape == (2, FEATURES)
    assert torch.equal(random_state()["torch"], before)
    assert core.module.training
    assert not core.module.frozen.training


def test_the_initial_state_follows_the_weights():
    core = TorchCore(nn.GRU(FEATURES, UNITS, batch_first=True), 1)
    assert core.initial_state(LANES).dtype == torch.float32
    assert core.double().initial_state(LANES).dtype == torch.float64
    assert copy.deepcopy(core).initial_state(0).shape == (0, 1, UNITS)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("in place", r"state\['sum'\] was changed in place"),
        ("outputs", r"returned outputs of \(3, 11, 6\) .* must be \(3, 11, 7\); check time_first and output_size"),
        ("shape", r"returned a state of .*\(3, 11, 7\).* from one of .*\(3, 7\)"),
        ("structure", r"returned a state of \[\(3, 7\)\], lanes first, from one of \{'sum'"),
        ("three", r"returned a tuple: it must return \(outputs, state\)"),
        ("count", "its state has a int in it"),
    ],
)
def test_what_a_module_may_not_return(kind, message):
    core = TorchCore(Summing(kind))
    with pytest.raises(InputError, match=message):
        core(inputs_of(), {"sum": torch.zeros(LANES, FEATURES)})


@pytest.mark.parametrize("start", [lambda n: torch.zeros(1, n, UNITS), lambda n: (torch.zeros(2, n, UNITS),) * 2])
def test_an_initial_state_unlike_the_modules_own_is_named(start):
    core = TorchCore(nn.LSTM(FEATURES, UNITS, batch_first=True), 1, initial_state=start)
    message = (
        r"^initial_state: LSTM was given a state of .* and makes one of \(\(1, 1, 5\), \(1, 1, 5\)\) itself, here of 1"
    )
    with pytest.raises(InputError, match=message):
        core(inputs_of(), core.initial_state(LANES))


def test_an_error_that_is_not_of_the_initial_state_stays_as_it_is():
    module = nn.LSTM(FEATURES, UNITS, batch_first=True)
    for start in (lambda n: (torch.zeros(1, n, UNITS),) * 2, None):
        core = TorchCore(module, 1, initial_state=start)
        with pytest.raises(RuntimeError, match=r"input\.size"):
            core(inputs_of()[..., :-1], core.initial_state(LANES))


def test_a_start_that_is_not_zero_is_not_overlooked():
    with pytest.raises(InputError, match="starts from something else than zeros"):
        TorchCore(Summing("ones")).initial_state(LANES)


@pytest.mark.parametrize("name", ["initial_state", "init_state"])
def test_a_tensor_as_the_initial_state_of_a_module_is_refused(name):
    """Whether an axis of size 1 is that of the lanes is not known."""
    module = Summing()
    setattr(module, name, nn.Parameter(torch.zeros(FEATURES)))
    with pytest.raises(InputError, match=rf"Summing.{name} is a Parameter and not a method.* pass initial_state=, a"):
        TorchCore(module)
    start = lambda num_lanes: {"sum": getattr(module, name).expand(num_lanes, -1)}  # noqa: E731
    core = TorchCore(module, initial_state=start)
    core(inputs_of(), core.initial_state(LANES))[0].sum().backward()
    assert getattr(module, name).grad.abs().sum() > 0
    other = {"initial_state": "init_state", "init_state": "initial_state"}[name]
    setattr(module, other, start)
    assert TorchCore(module).initial_state(LANES)["sum"].shape == (LANES, FEATURES)


def test_a_module_that_takes_no_none_is_explained():
    with pytest.raises(InputError, match=r"does not take None as its state .*: give it a method initial_state"):
        TorchCore(nn.Bilinear(FEATURES, 2, 3), input_size=FEATURES, output_size=3).initial_state(2)


def test_other_directions_and_axes_are_refused():
    with pytest.raises(InputError, match=r"LSTM\(bidirectional=True\): it reads later inputs"):
        TorchCore(nn.LSTM(3, 4, bidirectional=True))
    with pytest.raises(InputError, match=r"time_first=False with GRU\(batch_first=False\): set time_first to True"):
        TorchCore(nn.GRU(3, 4))


def test_a_bare_module_as_a_core_is_pointed_here():
    with pytest.raises(InputError, match=r"core: a Summing is no RecurrentCore; lit_tbptt.TorchCore\(module\)"):
        check_core(Summing())


class OwnCore(TorchCore):
    """As for the command line: its arguments are plain."""

    def __init__(self, size: int = 6) -> None:
        super().__init__(nn.GRU(size, size, batch_first=True), lane_axis=1)


def test_arguments_of_a_subclass_are_its_own():
    class Of(TorchCore):
        def __init__(self, given, start=None):
            super().__init__(given, initial_state=start or torch.zeros)

    module = Summing()
    assert Of(module).init_args == {"given": str(module), "start": None}
    assert OwnCore(4).init_args == {"size": 4}


def fit(core, folder, steps, resume=None):
    torch.manual_seed(1)
    data = TextLanesDataModule(TEXTS, num_lanes=6, k1=5, val_fraction=0.2)
    module = LitLanguageModel(core, k1=5, k2=9)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(max_steps=steps, accelerator="cpu", default_root_dir=folder, **quiet)
    trainer.fit(module, data, ckpt_path=resume)
    return trainer, module


@pytest.mark.parametrize("make", [OwnCore, lambda size=6: TorchCore(nn.GRU(size, size, batch_first=True), 1)])
def test_checkpoints(make, tmp_path):
    def start(size=6):
        torch.manual_seed(3)
        return make(size)

    path = tmp_path / "some.ckpt"
    trainer, module = fit(start(), tmp_path, 6)
    trainer.save_checkpoint(path)
    _, whole = fit(start(), tmp_path, 14)
    _, resumed = fit(start(), tmp_path, 14, path)
    assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    expected = module.generate("abc", 20)
    assert LitLanguageModel.load_from_checkpoint(path, core=make()).generate("abc", 20) == expected
    TextModel(module.language_model, module.tokenizer).save_pretrained(tmp_path / "model")
    assert TextModel.from_pretrained(tmp_path / "model", core=make()).generate("abc", 20) == expected
    with pytest.raises(InputError, match=r"model.core.*8.* with a checkpoint that was trained with"):
        fit(start(8), tmp_path, 14, path)
    if make is OwnCore:
        assert LitLanguageModel.load_from_checkpoint(path, core=OwnCore).generate("abc", 20) == expected
    else:
        assert LitLanguageModel.load_from_checkpoint(path).generate("abc", 20) == expected
        assert TextModel.from_pretrained(tmp_path / "model").generate("abc", 20) == expected
