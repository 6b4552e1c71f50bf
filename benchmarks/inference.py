"""How fast `validate` and `generate` are, beside a bare loop over the same network, in turn.

    python benchmarks/inference.py
    python benchmarks/inference.py --shapes '[bytes]' --rounds 15

Medians of the rounds' ratios of times, ours over the bare loop's, with quartiles. A validation is over 40 windows of
the shape (`shapes.py`), the time that of its windows alone. A generation is of 200 tokens after a prompt of 100, for
one prompt and for 64. The bare loops share the weights; they sum the loss and count the right answers, and draw with
one call of torch.multinomial for all prompts. Run it on an idle machine.
"""

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningModule, Trainer
from shapes import SHAPES, Shape
from torch.nn.functional import cross_entropy

from lit_tbptt import LSTM, Batch, LitTBPTT, RecurrentLM, Window
from lit_tbptt.models.metrics import TokenAccuracy
from lit_tbptt.training.language_model import LitLanguageModel

WINDOWS, PROMPT, TOKENS = 40, 100, 200


class Loader:
    """Windows of random tokens, eight in a batch."""

    def __init__(self, shape: Shape) -> None:
        tokens = torch.randint(shape.words, (shape.lanes, WINDOWS * shape.k1 + 1))
        windows = list(Window(tokens[:, :-1], tokens[:, 1:]).pieces(shape.k1))
        self.windows, self.num_lanes = windows, shape.lanes

    def __len__(self) -> int:
        return len(self.windows) // 8

    def __iter__(self) -> Iterator[Batch]:
        return (Batch(tuple(self.windows[at : at + 8]), {}) for at in range(0, len(self.windows), 8))


class Timer(Callback):
    """Notes how long a validation took."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = time.perf_counter() - self.started


class Validated(LitTBPTT):
    """The language model's evaluation without its tokenizer."""

    evaluation_window = LitLanguageModel.evaluation_window

    def __init__(self, model: RecurrentLM) -> None:
        super().__init__()
        self.model, self.evaluation_metrics = model, TokenAccuracy()
        self.initial_state, self.predict_window, self.outputs_loss = (
            model.initial_state,
            model.predict_window,
            model.outputs_loss,
        )


def validate(model: RecurrentLM, loader: Loader) -> float:
    """Returns the seconds of a validation by Lightning."""
    timer = Timer()
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[timer], enable_progress_bar=False, enable_model_summary=False
    )
    trainer.validate(Validated(model), loader, verbose=False)
    return timer.seconds


@torch.inference_mode()
def bare_validate(model: RecurrentLM, loader: Loader) -> float:
    """Returns the seconds of the loop of the textbook."""
    model.eval()
    started = time.perf_counter()
    state, nats, right = None, torch.zeros(()), torch.zeros((), dtype=torch.long)
    for inputs, targets, *_ in loader.windows:
        outputs, state = model.core.rnn[0](model.embedding(inputs), state)
        logits = model.logits(outputs)
        nats += cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        right += (logits.argmax(-1) == targets).sum()
    nats.item()
    return time.perf_counter() - started


def generate(model: RecurrentLM, prompts: torch.Tensor) -> float:
    """Returns the seconds of a generation by this package."""
    started = time.perf_counter()
    model.generate(prompts.tolist(), TOKENS, temperature=0.8)
    return time.perf_counter() - started


@torch.inference_mode()
def bare_generate(model: RecurrentLM, prompts: torch.Tensor) -> float:
    """Returns the seconds of the loop of the textbook."""
    model.eval()
    started = time.perf_counter()
    inputs, state, texts = prompts, None, [prompts]
    for _ in range(TOKENS):
        outputs, state = model.core.rnn[0](model.embedding(inputs), state)
        inputs = torch.multinomial(torch.softmax(model.logits(outputs[:, -1]) / 0.8, 1), 1)
        texts.append(inputs)
    torch.cat(texts, 1).tolist()
    return time.perf_counter() - started


def main(shapes: list[str] = ["bytes", "words"], rounds: int = 15) -> None:  # noqa: B006 - jsonargparse shows it
    """Measures and prints.

    Args:
        shapes: Which networks, of shapes.py.
        rounds: Measurements of each.
    """
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print("| network | work | tokens/s, median | time over the bare loop's (quartiles) |\n|---|---|---|---|")
    for name in shapes:
        shape = SHAPES[name]
        core = LSTM(shape.hidden, shape.layers, input_size=shape.embedding)
        model, loader = RecurrentLM(shape.words + 1, core), Loader(shape)
        one, many = torch.randint(shape.words, (64, PROMPT)).split([1, 63])
        many = torch.cat([one, many])
        works: dict[str, tuple[int, Callable[[], float], Callable[[], float]]] = {
            "validate": (
                WINDOWS * shape.tokens_per_window,
                lambda model=model, loader=loader: validate(model, loader),
                lambda model=model, loader=loader: bare_validate(model, loader),
            ),
        }
        for prompts in (one, many):
            works[f"generate, {len(prompts)} prompts"] = (
                len(prompts) * TOKENS,
                lambda model=model, prompts=prompts: generate(model, prompts),
                lambda model=model, prompts=prompts: bare_generate(model, prompts),
            )
        for work, (tokens, ours, bare) in works.items():
            pairs = [(ours(), bare()) for _ in range(rounds + 1)][1:]  # the first one warms up
            low, middle, high = statistics.quantiles([mine / theirs for mine, theirs in pairs], n=4, method="inclusive")
            speed = tokens / statistics.median(mine for mine, _ in pairs)
            print(f"| {shape.name} | {work} | {speed:,.0f} | {middle:.2f} ({low:.2f} to {high:.2f}) |", flush=True)


if __name__ == "__main__":
    auto_cli(main)
