"""Truncated BPTT as one would write it without this package: a bare loop, and by the documents of other libraries.

    python benchmarks/other_loops.py LOOP SHAPE     prints the tokens per second after the first 20 windows

All train the same model with the same optimizer on tokens that lie in memory, and carry the state.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from shapes import SHAPES, Shape
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

WARM_UP = 20
Window = tuple[Tensor, Tensor]


class LanguageModel(nn.Module):
    """Embedding, LSTM and a linear layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.words + 1, shape.embedding)
        self.core = nn.LSTM(shape.embedding, shape.hidden, shape.layers, batch_first=True)
        self.head = nn.Linear(shape.hidden, shape.words + 1)

    def forward(
        self, tokens: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns logits and the state after the window."""
        outputs, state = self.core(self.embedding(tokens), state)
        return self.head(outputs), state


class Clock:
    """Notes when every window was done."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.times = shape, []

    def tick(self, *args: object) -> None:
        """Notes it."""
        self.times.append(time.perf_counter())

    def tokens_per_second(self) -> float:
        """Returns the mean after the warm-up."""
        windows = len(self.times) - 1 - WARM_UP
        return windows * self.shape.tokens_per_window / (self.times[-1] - self.times[WARM_UP])


def windows(shape: Shape) -> Iterator[Window]:
    tokens = torch.randint(shape.words + 1, (shape.lanes, shape.windows * shape.k1 + 1))
    for start in range(0, shape.windows * shape.k1, shape.k1):
        yield tokens[:, start : start + shape.k1], tokens[:, start + 1 : start + shape.k1 + 1]


def bare(shape: Shape, clock: Clock, fused: bool | None = None) -> None:
    """The loop of the textbook."""
    model = LanguageModel(shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    state = None
    for inputs, targets in windows(shape):
        logits, state = model(inputs, state)
        state = tuple(leaf.detach() for leaf in state)
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        clock.tick()


def lightning(shape: Shape, clock: Clock) -> None:
    """Manual optimization, as Lightning's documents say (common/tbptt): a batch is split, the state carried over."""
    from lightning.pytorch import LightningModule, Trainer

    class Recipe(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.automatic_optimization, self.state = LanguageModel(shape), False, None

        def training_step(self, batch: Window, batch_idx: int) -> None:
            optimizer = self.optimizers()
            for inputs, targets in zip(*(part.split(shape.k1, 1) for part in batch), strict=True):
                logits, state = self.model(inputs, self.state)
                self.state = tuple(leaf.detach() for leaf in state)
                loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
                optimizer.zero_grad()
                self.manual_backward(loss)
                self.clip_gradients(optimizer, 0.25, "norm")
                optimizer.step()
                self.log("loss", loss, prog_bar=True)
                clock.tick()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    class Loader:
        def __len__(self) -> int:
            return -(-shape.windows // 8)

        def __iter__(self) -> Iterator[Window]:
            parts = list(windows(shape))
            for at in range(0, len(parts), 8):
                yield tuple(torch.cat(side, 1) for side in zip(*parts[at : at + 8], strict=True))

    Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False).fit(Recipe(), Loader())


def ignite(shape: Shape, clock: Clock) -> None:
    """Its `create_supervised_tbptt_trainer`, which has no place to clip: this loop does less."""
    from ignite.contrib.engines import create_supervised_tbptt_trainer
    from ignite.contrib.engines.tbptt import Tbptt_Events

    model = LanguageModel(shape)

    def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits.flatten(0, 1), targets.flatten())

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    trainer = create_supervised_tbptt_trainer(model, optimizer, loss_of, tbtt_step=shape.k1, dim=1)
    trainer.add_event_handler(Tbptt_Events.TIME_ITERATION_COMPLETED, clock.tick)
    parts = list(windows(shape))
    trainer.run([tuple(torch.cat(side, 1) for side in zip(*parts, strict=True))], max_epochs=1)


def fastai(shape: Shape, clock: Clock) -> None:
    """Its `LMDataLoader` and `ModelResetter`."""
    from fastai.callback.core import Callback
    from fastai.callback.rnn import ModelResetter
    from fastai.callback.training import GradientClip
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import Adam
    from fastai.text.data import LMDataLoader

    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.state = LanguageModel(shape), None

        def reset(self) -> None:
            self.state = None

        def forward(self, tokens: Tensor) -> Tensor:
            logits, state = self.model(tokens, self.state)
            self.state = tuple(leaf.detach() for leaf in state)
            return logits

    class Ticking(Callback):
        def after_batch(self) -> None:
            if self.training:  # and not in the validation
                clock.tick()

    tokens = torch.randint(shape.words + 1, (shape.lanes * shape.windows * shape.k1 + 1,))
    loader = LMDataLoader([(tokens,)], bs=shape.lanes, seq_len=shape.k1, num_workers=0)
    learner = Learner(
        DataLoaders(loader, loader),
        Stateful(),
        loss_func=lambda logits, targets: cross_entropy(logits.flatten(0, 1), targets.flatten()),
        opt_func=Adam,
        cbs=[ModelResetter(), GradientClip(0.25), Ticking()],
    )
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, lr=1e-3)


LOOPS: dict[str, Callable[[Shape, Clock], None]] = {
    "bare": bare,
    "bare_fused": partial(bare, fused=True),
    "lightning": lightning,
    "ignite": ignite,
    "fastai": fastai,
}


def product_floor(shape: Shape) -> float:
    """Returns the seconds that a window's matrix products alone take: forward, and twice that backward."""
    tokens, seconds = shape.tokens_per_window, 0.0
    sizes = [(tokens, shape.hidden, shape.words + 1, 3)]
    for layer in range(shape.layers):
        inputs = shape.hidden if layer else shape.embedding
        sizes += [(tokens, inputs, 4 * shape.hidden, 3), (tokens, shape.hidden, 4 * shape.hidden, 1)]
        sizes += [(shape.lanes, shape.hidden, 4 * shape.hidden, 2 * shape.k1)]  # one token after the other
    for rows, inner, columns, times in sizes:
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
        took = []
        for _ in range(20):
            start = time.perf_counter()
            left @ right
            took.append(time.perf_counter() - start)
        seconds += times * statistics.median(took)
    return seconds


if __name__ == "__main__":
    name, shape = sys.argv[1], SHAPES[sys.argv[2]]
    if name == "floor":
        print(shape.tokens_per_window / product_floor(shape))
    else:
        clock = Clock(shape)
        LOOPS[name](shape, clock)
        print(clock.tokens_per_second())
