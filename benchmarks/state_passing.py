"""Post-training with carried state, after Ruiz & Gu (2025), "Understanding and improving length generalization".

    python benchmarks/state_passing.py FOLDER_OF_TINY_SHAKESPEARE --picture docs/state_passing.png

A tiny Mamba is trained on windows of 64 bytes, each from the initial state, and then for a tenth of the steps with its
state carried. The loss on held-out text by position, from the initial state on, before and after. As a control, the
tenth is also trained with resets. About 10 minutes on one core for three seeds.
"""

import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from jsonargparse import auto_cli
from mamba import fit, held_out, mamba, nats_by_position, trained

from lit_tbptt import LSTM, HuggingFaceCore, LitLanguageModel, RecurrentLM

K1, NUM_FIRST, NUM_POSITIONS = 64, 256, 4096
STRETCHES = ((0, 16), (16, 64), (64, 256), (256, 1024), (1024, 4096))
MODELS = ("before", "a tenth more, carried state", "a tenth more, resets")

CORES = {
    "mamba": mamba,
    "mamba2": lambda: HuggingFaceCore(
        "mamba2", 64, 2, {"state_size": 64, "num_heads": 4, "head_dim": 32, "n_groups": 1, "chunk_size": 64}
    ),
    "lstm": lambda: LSTM(128),
}


def loss_by_position(network: RecurrentLM, text: torch.Tensor) -> torch.Tensor:
    """Returns the mean loss at each position. The first 256 are means over 16 times as many starts: they vary more."""
    curves = [
        nats_by_position(network, text, len(text) // length, None).mean(0) for length in (NUM_FIRST, NUM_POSITIONS)
    ]
    return torch.cat([curves[0], curves[1][NUM_FIRST:]])


def draw(curves: dict[str, torch.Tensor], picture: Path) -> None:
    """Draws the loss by position, averaged over positions that are close on a logarithmic axis, and over seeds."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    edges = [int(2 ** (power / 3)) for power in range(6, 37)]
    for name, curve in curves.items():
        points = [curve[start:end].mean().item() for start, end in pairwise(edges)]
        axes.stairs(points, edges, baseline=None, label=name)
    axes.axvline(K1, color="gray", linestyle=":")
    axes.text(K1, axes.get_ylim()[0], " length in training", va="bottom", color="gray")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position after the initial state (bytes)")
    axes.set_ylabel("nats per byte")
    axes.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=120)


def main(
    folder: Path,
    core: str = "mamba2",
    num_steps: int = 1000,
    seeds: tuple[int, ...] = (1, 2, 3),
    picture: Path | None = None,
    num_threads: int = 1,
) -> None:
    """Prints a table and draws the picture.

    Args:
        folder: The folder with input.txt.
        core: mamba2, mamba or lstm.
        num_steps: Optimizer steps from the initial state, each over 16 windows of 64 bytes.
        seeds: A training each.
        picture: The file of the picture; none if it is left out.
        num_threads: Threads of torch.
    """
    torch.set_num_threads(num_threads)
    text = held_out(folder)
    num_lanes = (len(text) - 1) // NUM_POSITIONS
    text = text[: num_lanes * NUM_POSITIONS + 1]
    curves: dict[str, list[torch.Tensor]] = {name: [] for name in MODELS}
    print("nats per byte by position\n\n| seed | model |", *(f"{start} - {end} |" for start, end in STRETCHES))
    print("|---|---|" + "---|" * len(STRETCHES), flush=True)
    for seed in seeds:
        first = trained(CORES[core], folder, seed, num_steps, K1, carry_state=False)
        with tempfile.TemporaryDirectory() as place:
            checkpoint = Path(place) / "first.ckpt"
            first.trainer.save_checkpoint(checkpoint)
            models = [first]
            for carry_state in (True, False):
                models.append(LitLanguageModel.load_from_checkpoint(checkpoint, carry_state=carry_state))
                fit(models[-1], folder, num_steps // 10)
        for name, model in zip(MODELS, models, strict=True):
            curve = loss_by_position(model.language_model, text)
            curves[name].append(curve)
            print(
                f"| {seed} | {name} |", *(f"{curve[slice(*stretch)].mean():.4f} |" for stretch in STRETCHES), flush=True
            )
    for name, of_seeds in curves.items():
        medians = [
            statistics.median(curve[slice(*stretch)].mean().item() for curve in of_seeds) for stretch in STRETCHES
        ]
        print(f"| median | {name} |", *(f"{median:.4f} |" for median in medians))
    if picture:
        draw({name: torch.stack(of_seeds).mean(0) for name, of_seeds in curves.items()}, picture)


if __name__ == "__main__":
    auto_cli(main)
