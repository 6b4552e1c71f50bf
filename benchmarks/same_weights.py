"""Trains five configurations in two checkouts and compares the weights bit for bit: what a refactoring must keep.

    python benchmarks/same_weights.py ../before .

Each checkout runs its own `train.py fit` for 200 optimizer steps on Python's standard library. A configuration is equal
if every tensor of the weights and of the optimizer in `last.ckpt` is, and what the run prints of its evaluation.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves

SMALL = [
    "--model.core.hidden_size=48",
    "--model.core.num_layers=2",
    "--model.core.dropout=0.2",
    "--model.embedding_dropout=0.1",
    "--model.output_dropout=0.15",
    "--optimizer=AdamW",
    "--optimizer.lr=3e-3",
]
CONFIGURATIONS = {
    "k1 = k2": [],
    "k1 < k2, dropout": ["--model.core=LSTM", *SMALL, "--model.k1=16", "--model.k2=40"],
    "streamed": ["--model.core=GRU", *SMALL, "--model.k1=24", "--data.streaming=true", "--data.num_readers=2"],
    "document resets": ["--model.core=RNN", *SMALL, "--model.k1=20", "--model.k2=30", "--data.document_reset=true"],
    "two processes": ["--model.core=LSTM", *SMALL, "--model.k1=12", "--trainer.devices=2", "--trainer.strategy=ddp"],
}
ALL = [
    "--trainer.max_steps=200",
    "--trainer.val_check_interval=12",
    "--trainer.limit_val_batches=3",
    "--trainer.limit_test_batches=3",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]


def train(checkout: Path, options: list[str]) -> tuple[list[torch.Tensor], list[str]]:
    """Returns the tensors of `last.ckpt` and the lines of the printed table."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(checkout / "train.py"), "fit", *options, *ALL]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        (path,) = Path(folder).glob("runs/*/*/checkpoints/last.ckpt")
        saved = torch.load(path, weights_only=True)
    leaves = tree_leaves([saved["state_dict"], saved["optimizer_states"][0]["state"]])
    tensors = [torch.as_tensor(leaf) for leaf in leaves]
    return tensors, re.findall(r"^(?:nats_per_token|bits_per_byte|accuracy) .*$", done.stdout, re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path)
    first, second = (path.resolve() for path in parser.parse_args().checkouts)
    failed = False
    for name, options in CONFIGURATIONS.items():
        (ours, ours_printed), (theirs, theirs_printed) = (train(checkout, options) for checkout in (first, second))
        same = len(ours) == len(theirs) and all(map(torch.equal, ours, theirs)) and ours_printed == theirs_printed
        failed |= not same
        print(f"{name:20} {len(ours):3} tensors, {'equal' if same else 'DIFFERENT'}; {ours_printed}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
