"""A tiny Mamba of `transformers` with carried state beside one whose state is reset at every window; its time a step.

    python benchmarks/mamba.py FOLDER_OF_TINY_SHAKESPEARE

The folder holds input.txt, of which the last tenth is for validation. Random weights, bytes, windows of 128. The first
table is the validation loss of both models, each scored with its state carried over the split and with its state reset
every 128 bytes. The second is the time of a training step beside that of the library's own forward and backward pass,
which starts every window from a zero state and returns none. About 15 minutes on one core.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from jsonargparse import auto_cli
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.nn.functional import cross_entropy

from lit_tbptt import HuggingFaceCore, LitLanguageModel, RecurrentLM, TextLanesDataModule, Truncation, Window
from lit_tbptt.models.metrics import token_nats

K1, NUM_LANES, VOCABULARY = 128, 16, 257
SIZES = (64, 2, {"state_size": 8})


def mamba() -> HuggingFaceCore:
    """Returns the core."""
    return HuggingFaceCore("mamba", *SIZES)


def trained(
    make_core: Callable[[], HuggingFaceCore], folder: Path, seed: int, num_steps: int, k1: int, carry_state: bool
) -> LitLanguageModel:
    """Returns a language model that is trained on the corpus."""
    seed_everything(seed, verbose=False)
    model = LitLanguageModel(
        make_core(),
        k1=k1,
        carry_state=carry_state,
        clip_norm=1.0,
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=3e-3),
    )
    fit(model, folder, num_steps)
    return model


def fit(model: LightningModule, folder: Path, num_steps: int) -> None:
    """Trains a model for some steps, without validation."""
    data = TextLanesDataModule(str(folder), val_fraction=0.1, num_lanes=NUM_LANES, k1=model.truncation.k1)
    trainer = Trainer(
        max_steps=num_steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model, data)


def held_out(folder: Path) -> torch.Tensor:
    """Returns the bytes of the last tenth of the corpus."""
    text = next(folder.glob("*.txt")).read_bytes()
    return torch.frombuffer(bytearray(text[-len(text) // 10 :]), dtype=torch.uint8).long()


@torch.inference_mode()
def nats_by_position(network: RecurrentLM, text: torch.Tensor, num_lanes: int, reset_every: int | None) -> torch.Tensor:
    """Returns the loss of every byte but the first, `[lane, time]`, of equal stretches of the text."""
    network.eval()
    num_steps = (len(text) - 1) // num_lanes
    inputs, targets = (text[at : at + num_lanes * num_steps].view(num_lanes, num_steps) for at in (0, 1))
    state, losses = network.initial_state(num_lanes), []
    for start in range(0, num_steps, reset_every or K1):
        window = slice(start, start + (reset_every or K1))
        logits, state = network(inputs[:, window], state)
        losses.append(token_nats(logits, targets[:, window]))
        if reset_every:
            state = network.initial_state(num_lanes)
    return torch.cat(losses, 1)


def seconds(step: Callable[[], None], num_rounds: int) -> float:
    """Returns the median time of a call, after one that is not counted."""
    step()
    times = []
    for _ in range(num_rounds):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def step_times(num_rounds: int) -> tuple[float, float]:
    """Returns the seconds of a step with carried state, and of one with the library's forward without a cache."""
    from transformers import AutoConfig, AutoModelForCausalLM

    hidden_size, num_layers, options = SIZES
    window = Window(*torch.randint(256, (2, NUM_LANES, K1)))
    task, truncation = RecurrentLM(VOCABULARY, mamba()), Truncation(K1, K1)
    optimizer = torch.optim.AdamW(task.parameters())
    carry = None

    def ours() -> None:
        nonlocal carry
        loss, num_targets, carry, _ = truncation(task, window, carry)
        carry = carry.detach()
        optimizer.zero_grad()
        (loss / num_targets).backward()
        optimizer.step()

    settings = {"hidden_size": hidden_size, "num_hidden_layers": num_layers, "vocab_size": VOCABULARY, **options}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **settings)).train()
    of_theirs = torch.optim.AdamW(model.parameters())

    def theirs() -> None:
        logits = model(window.inputs, use_cache=False).logits
        of_theirs.zero_grad()
        cross_entropy(logits.flatten(0, 1), window.targets.flatten()).backward()
        of_theirs.step()

    return seconds(ours, num_rounds), seconds(theirs, num_rounds)


def main(
    folder: Path, num_steps: int = 500, seeds: tuple[int, ...] = (1, 2, 3), num_rounds: int = 5, num_threads: int = 1
) -> None:
    """Prints the two tables.

    Args:
        folder: The folder with input.txt.
        num_steps: Optimizer steps of every training, each over 16 windows of 128 bytes.
        seeds: A pair of trainings each.
        num_rounds: Steps that are timed.
        num_threads: Threads of torch.
    """
    torch.set_num_threads(num_threads)
    text = held_out(folder)
    print(f"nats per byte after {num_steps} steps\n")
    print("| seed | trained with | scored carried | scored reset every 128 |\n|---|---|---|---|", flush=True)
    for seed in seeds:
        for carry_state in (True, False):
            network = trained(mamba, folder, seed, num_steps, K1, carry_state).language_model
            scores = [nats_by_position(network, text, 8, every).mean().item() for every in (None, K1)]
            name = "carried state" if carry_state else "a reset every window"
            print(f"| {seed} | {name} | {scores[0]:.4f} | {scores[1]:.4f} |", flush=True)
    ours, theirs = step_times(num_rounds)
    print("\n| a training step of 16 x 128 bytes | seconds |\n|---|---|")
    print(f"| HuggingFaceCore, carried state | {ours:.3f} |\n| transformers, no cache | {theirs:.3f} |")


if __name__ == "__main__":
    auto_cli(main)
