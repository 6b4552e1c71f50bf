"""Small tasks, one with exact gradients and one to learn, two cores, and the windows they are trained on."""

import torch
from torch import nn

from lit_tbptt import Batch, Cell, LitTBPTT, RecurrentCore, Task, Window


class Recurrence(Task, nn.Module):
    """h_t = w h_{t-1} + x_t, loss h_t: small enough to know every gradient exactly."""

    def __init__(self, w=0.5):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def initial_state(self, num_lanes):
        return {"h": torch.zeros(num_lanes, 1, dtype=torch.float64)}

    def window_loss(self, window, state):
        h, total = state["h"], torch.zeros((), dtype=torch.float64)
        for x in window.inputs.unbind(1):
            h = self.w * h + x[:, None]
            total = total + h.sum()
        return total, window.inputs.numel(), {"h": h}


# dL/dw by (k1, k2) of h_t = w h_{t-1} + 1, loss h_t, w = 1/2, T = 12, weights frozen.
EXACT_GRADIENTS = {
    (1, 1): "20481/1024",
    (1, 2): "14849/512",
    (1, 3): "33795/1024",
    (2, 2): "6315/256",
    (2, 4): "17367/512",
    (3, 3): "28381/1024",
    (3, 6): "1133/32",
    (4, 4): "15267/512",
    (4, 6): "4473/128",
    (4, 8): "18357/512",
    (6, 6): "4161/128",
    (5, 10): "36801/1024",
    (1, 12): "36879/1024",
    (6, 12): "36879/1024",
    (12, 12): "36879/1024",
}


class Regression(LitTBPTT):
    """A GRU that predicts one number per step from another."""

    def __init__(self, lr=0.01, hidden=6, schedule=None, **options):
        super().__init__(**options)
        self.core = nn.GRU(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)
        self.lr = lr
        self.schedule = schedule

    def initial_state(self, num_lanes):
        return self.head.weight.new_zeros(num_lanes, self.core.hidden_size)

    def window_loss(self, window, state):
        outputs, state = self.core(window.inputs.unsqueeze(-1), state.unsqueeze(0).contiguous())
        errors = (self.head(outputs).squeeze(-1) - window.targets) ** 2
        return errors.sum(), errors.numel(), state.squeeze(0)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), self.lr)
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.schedule(optimizer)}


class Leaky(RecurrentCore):
    """A user's own core, with a nested state."""

    def __init__(self, input_size=7, rate=0.3):
        super().__init__()
        self.input_size = self.output_size = input_size
        self.rate = rate
        self.register_buffer("zeros", torch.zeros(input_size), persistent=False)

    def initial_state(self, num_lanes):
        return {"slow": [self.zeros.expand(num_lanes, -1)], "seen": torch.zeros(num_lanes, dtype=torch.long)}

    def forward(self, inputs, state):
        slow, outputs = state["slow"][0], []
        for x in inputs.unbind(1):
            slow = slow.lerp(x, self.rate)
            outputs.append(slow)
        return torch.stack(outputs, 1), {"slow": [slow], "seen": state["seen"] + inputs.shape[1]}


class Shaken(RecurrentCore):
    """h_t = h_{t-1} + x_t + noise, which is drawn once a window in training; it remembers what it was run with."""

    def __init__(self, size: int):
        super().__init__()
        self.input_size = self.output_size = size
        self.register_buffer("zeros", torch.zeros(size), persistent=False)
        self.seen = []

    def initial_state(self, num_lanes):
        return self.zeros.expand(num_lanes, -1)

    def begin_window(self, num_lanes):
        return self.zeros.new_empty(num_lanes, 1).uniform_() if self.training else None

    def forward(self, inputs, state):
        self.seen.append(self.noise)
        noise = self.noise[:, None] if self.training else 0
        outputs = state[:, None] + (inputs + noise).cumsum(1)
        return outputs, outputs[:, -1]


class OwnGRU(Cell):
    """A user's own core, with weights."""

    def __init__(self, size: int = 6):
        super().__init__()
        self.input_size = self.output_size = size
        self.cell = torch.nn.GRUCell(size, size)

    def initial_state(self, num_lanes):
        return (torch.zeros(num_lanes, self.input_size),)

    def step(self, x, state):
        output = self.cell(x, state[0])
        return output, (output,)


def windows_of(inputs, targets, k1, resets=()):
    """Cuts `[lane, time]` tensors into windows; `resets` names (window, lane) pairs besides the first window's."""
    cut = []
    for number, start in enumerate(range(0, inputs.shape[1], k1)):
        lanes = [lane for window, lane in resets if window == number]
        reset = torch.zeros(len(inputs), dtype=torch.bool)
        reset[lanes if number else slice(None)] = True
        some = slice(start, start + k1)
        cut.append(Window(inputs[:, some], targets[:, some], reset if reset.any() else None))
    return cut


class Batches:
    """A loader: Lightning takes a list for several loaders."""

    def __init__(self, windows, windows_per_batch=1):
        self.batches = [
            Batch(tuple(windows[at : at + windows_per_batch]), {"window": at})
            for at in range(0, len(windows), windows_per_batch)
        ]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)
