"""Training a small regression: with the Trainer, and by a loop written out, on the same windows."""

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from tasks import Batches, Regression, windows_of
from torch.testing import assert_close

LANES, STEPS = 3, 65


def sequence(steps=STEPS):
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(LANES, steps, generator=generator, dtype=torch.float64)
    return inputs, inputs.roll(2, 1).cumsum(1).tanh()


def batches(k1, windows_per_batch=1, data=None, resets=()):
    return Batches(windows_of(*(data or sequence()), k1, resets), windows_per_batch)


def fit(model, train, val=None, resume=None, **options):
    settings = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "precision": "64-true",
        "num_sanity_val_steps": 0,
    }
    trainer = Trainer(**(settings | options))
    trainer.fit(model, train, val, ckpt_path=resume)
    return trainer


def by_hand(model, windows, epochs, clip_norm=None, rates=None):
    """The same training written out: one graph a window, detached in between."""
    model.double()
    step = 0
    for _ in range(epochs):
        state = None
        for window in windows:
            fresh = model.initial_state(LANES)
            state = fresh if window.reset is None and state is None else state
            if window.reset is not None:
                state = fresh if state is None else torch.where(window.reset[:, None], fresh, state.detach())
            loss, count, state = model.window_loss(window, state.detach())
            model.zero_grad()
            (loss / count).backward()
            if clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= (rates[step] if rates else model.lr) * parameter.grad
            step += 1
    return model


def pair(**options):
    torch.manual_seed(2)
    first = Regression(**options)
    torch.manual_seed(2)
    return first, Regression(**options)


def same_weights(model, other):
    assert_close(dict(model.double().state_dict()), dict(other.double().state_dict()), rtol=0, atol=1e-12)


class Rates(Callback):
    """Keeps the learning rate after every step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, trainer, module):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


class SavedAt(Callback):
    """Saves after a validation, or after a step."""

    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_validation_end(self, trainer, module):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path, weights_only=False)

    on_step_end = on_validation_end


class Recording(Logger):
    """Keeps what is logged."""

    name, version = "recording", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_hyperparams(self, *args):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append(metrics)


class Lazily:
    """A loader whose iterators begin, when they are first asked, where `load_state_dict` says."""

    def __init__(self, windows_per_batch=4):
        self.batches, self.first = batches(5, windows_per_batch).batches, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        first, self.first = self.first, 0
        yield from self.batches[first:]

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        places = [batch.position["window"] for batch in self.batches]
        self.first = (places.index(state["position"]["window"]) if state["position"] else 0) + state["skip"]
