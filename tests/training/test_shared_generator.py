"""Noise without a lane axis is the same in every process, for any number of them, and goes on after a resume."""

import os

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from loops import fit as fit_regression
from processes import together
from tasks import Regression
from torch.optim import LBFGS

from lit_tbptt import RandomTruncation, RunCheckpoint, SequenceLanesDataModule, shared_generator

LANES, K1, STEPS = 5, 3, 13


class Dropped(Regression):
    """With a factor for all lanes in each window; the processes also draw numbers of their own."""

    def begin_window(self, num_lanes):
        if not self.training:
            return None
        torch.rand(num_lanes)
        return torch.rand((), generator=shared_generator())

    def window_loss(self, window, state):
        if self.noise is None:
            return super().window_loss(window, state)
        return super().window_loss(window._replace(inputs=window.inputs * self.noise), state)


class Noises(Callback):
    """Keeps the noise of every run of a window."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, module):
        begin = type(module).begin_window
        module.begin_window = lambda num_lanes: self.kept(begin(module, num_lanes))

    def kept(self, noise):
        self.seen += [] if noise is None else [float(noise)]
        return noise


def fit(folder, num_ranks, max_steps=STEPS, resume=None, seed=None, **options):
    """Trains in this process, one of `num_ranks`; returns the noise and the weights."""
    generator = torch.Generator().manual_seed(7)
    items = [
        {"x": torch.randn(length, generator=generator), "y": torch.randn(length, generator=generator)}
        for length in (31, 29, 37, 23, 30)
    ]
    data = SequenceLanesDataModule(
        items, items, inputs="x", targets="y", num_lanes=LANES, k1=K1, windows_per_batch=2, dtypes="float64"
    )
    if num_ranks == 1 or seed is None:
        seed_everything(4, verbose=False)
    else:
        torch.manual_seed(seed)
    module, noises = Dropped(k1=K1, k2=K1 + 2, lr=0.1, **options), Noises()
    options = {"devices": num_ranks, "strategy": "ddp" if num_ranks > 1 else "auto"}
    fit_regression(
        module,
        data,
        resume=resume,
        max_epochs=9,
        max_steps=max_steps,
        callbacks=[noises, RunCheckpoint(every_n_steps=1000)],
        enable_checkpointing=True,
        default_root_dir=folder,
        **options,
    )
    return noises.seen, {name: value.clone() for name, value in module.state_dict().items()}


def last(folder):
    return folder / "checkpoints" / "last.ckpt"


def assert_equal(found, expected):
    for noise, weights in found:
        assert noise == expected[0]
        torch.testing.assert_close(weights, expected[1], rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    noise, weights = fit(tmp_path_factory.mktemp("alone"), 1)
    assert len(noise) == len(set(noise)) == STEPS
    return noise, weights


def test_two_processes_draw_what_one_does(alone, tmp_path):
    assert_equal(together(tmp_path, 2, fit, tmp_path, 2), alone)


@pytest.mark.parametrize("ranks", [(1, 1, 1), pytest.param((2, 1, 3), marks=pytest.mark.slow)])
def test_a_resumed_run_goes_on_with_it_on_any_number_of_processes(ranks, alone, tmp_path):
    noise, resume = [], None
    for num_ranks, max_steps in zip(ranks, (4, 9, STEPS), strict=True):
        found = together(tmp_path, num_ranks, fit, tmp_path, num_ranks, max_steps, resume)
        noise, resume = noise + found[0][0], last(tmp_path)
    assert_equal([(noise, weights) for _, weights in found], alone)


def unseeded(folder):
    """Every process is seeded in its own way, and none through Lightning."""
    os.environ.pop("PL_GLOBAL_SEED", None)
    return fit(folder, 2, seed=100 + int(os.environ["LOCAL_RANK"]))


def test_processes_that_are_seeded_differently_agree(alone, tmp_path):
    first, second = (noise for noise, _ in together(tmp_path, 2, unseeded, tmp_path))
    assert first == second != alone[0]


def test_every_evaluation_of_a_closure_sees_the_noise_of_its_window(tmp_path):
    class Searching(Dropped):
        def configure_optimizers(self):
            return LBFGS(self.parameters(), 0.1, max_iter=3)

    noises = Noises()
    seed_everything(4, verbose=False)
    generator = torch.Generator().manual_seed(7)
    items = [{"x": torch.randn(11, generator=generator), "y": torch.randn(11, generator=generator)} for _ in range(2)]
    data = SequenceLanesDataModule(
        items, inputs="x", targets="y", num_lanes=2, k1=K1, windows_per_batch=2, dtypes="float64"
    )
    fit_regression(Searching(k1=K1), data, max_epochs=1, callbacks=[noises])
    windows = list(dict.fromkeys(noises.seen))
    assert len(windows) == 4
    assert [noise for noise in windows for _ in range(noises.seen.count(noise))] == noises.seen
    assert min(map(noises.seen.count, windows)) > 2


class SavedWhilePending(Callback):
    """Saves at the end of a batch where a gradient is pending that does not begin with the run."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, module, *args):
        pending = module._step_boundary
        if pending is not None and pending.position.window and not self.path.exists():
            trainer.save_checkpoint(self.path, weights_only=False)


def test_a_checkpoint_with_a_gradient_pending_repeats_its_windows_with_their_noise(tmp_path):
    def train(resume=None, *callbacks):
        seed_everything(4, verbose=False)
        model, noises = Dropped(k1=K1, lr=0.1, update=RandomTruncation(0.3)), Noises()
        items = [{"x": torch.linspace(0, 3, 41), "y": torch.linspace(2, 5, 41)} for _ in range(2)]
        data = SequenceLanesDataModule(
            items, inputs="x", targets="y", num_lanes=2, k1=K1, windows_per_batch=2, dtypes="float64"
        )
        fit_regression(model, data, resume=resume, max_epochs=1, callbacks=[noises, *callbacks])
        return noises.seen, model.state_dict()

    whole, weights = train(None, SavedWhilePending(tmp_path / "saved.ckpt"))
    seen, resumed = train(tmp_path / "saved.ckpt")
    assert 0 < len(seen) < len(whole) == 14
    assert seen == whole[-len(seen) :]
    torch.testing.assert_close(resumed, weights, rtol=0, atol=0)
