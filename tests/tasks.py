"""Small tasks, data and loops that several tests share."""

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from lit_tbptt import Batch, LitTBPTT, StreamedLanes, StridedLanes, Tokenizer, Window
from lit_tbptt.data import document_stream

# A run from the command line on the words_folder of conftest.py, of some seconds.
SMALL_RUN = [
    "--model.core.hidden_size=9",
    "--model.k1=5",
    "--data.num_lanes=3",
    "--data.windows_per_batch=2",
    "--data.eval_num_lanes=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_model_summary=false",
]


class Recurrence(nn.Module):
    """h_t = w h_{t-1} + x_t, loss h_t: small enough to know every gradient exactly."""

    def __init__(self, w=0.5):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def initial_state(self, num_lanes):
        return {"h": torch.zeros(num_lanes, 1, dtype=torch.float64)}

    def advance(self, window, state):
        return self.window_loss(window, state)[2]

    def window_loss(self, window, state):
        h, total = state["h"], torch.zeros((), dtype=torch.float64)
        for x in window.inputs.unbind(1):
            h = self.w * h + x[:, None]
            total = total + h.sum()
        return total, window.inputs.numel(), {"h": h}


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


class Letters(Tokenizer):
    """The letters from a on are 1, 2, 3 ..., however many there are; `<eos>` is 0."""

    name, vocabulary_size, eos = "letters", 1000, 0

    def encode(self, texts):
        return [np.array([ord(letter) - 96 for letter in text], np.int64) for text in texts]

    def decode(self, ids):
        return "".join(chr(96 + i) if i else "\n" for i in ids)

    def describe(self):
        return {"name": self.name}


def stream_of(texts, num_shards=1):
    """A stream of texts in shards of neighbours."""
    return document_stream(Dataset.from_dict({"text": texts}).to_iterable_dataset(num_shards), "train")


def streamed(texts, num_lanes, k1, windows_per_batch=1, num_shards=1, **options):
    """The streamed lanes of some texts."""
    return StreamedLanes(stream_of(texts, num_shards), Letters(), num_lanes, k1, windows_per_batch, **options)


def strided(texts, num_lanes, k1, windows_per_batch=1, **options):
    """The strided lanes of some texts."""
    documents = [ids for ids in Letters().encode_documents(texts) if len(ids)]
    ends = np.cumsum([len(ids) for ids in documents])
    return StridedLanes(np.concatenate(documents), 0, num_lanes, k1, windows_per_batch, document_ends=ends, **options)


def as_lists(batches):
    """Every window as (inputs, targets, reset, mask) in plain lists, by batch."""
    return [
        [tuple(None if part is None else part.int().tolist() for part in window) for window in batch.windows]
        for batch in batches
    ]


def drawn(lanes):
    """Every lane as text: its targets in windows, `$` for `<eos>`, `.` where nothing is scored, `|` before a reset."""
    rows = [""] * len(lanes.local_lanes)
    for batch in lanes:
        for window in batch.windows:
            mask, reset = window.mask_or_ones(), window.reset
            for lane, targets in enumerate(window.targets):
                letters = Letters().decode(targets.tolist()).replace("\n", "$")
                scored = "".join(a if m else "." for a, m in zip(letters, mask[lane].tolist(), strict=True))
                rows[lane] += ("|" if reset is not None and reset[lane] else " ") + scored
    return rows
