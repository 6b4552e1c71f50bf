"""The works that speed is measured on: a language model by its sizes, random text for it, and its command line."""

import random
from pathlib import Path
from typing import NamedTuple


class Shape(NamedTuple):
    """An LSTM language model and its windows.

    Attributes:
        words: Different words of the text; the vocabulary has one more, the end of a line.
        embedding: Features of an embedded word.
        hidden: Units of a layer.
        layers: Layers.
        lanes: Lanes.
        k1: Tokens per lane and window.
        windows: Windows of an epoch, which is what one measurement takes.
    """

    words: int
    embedding: int
    hidden: int
    layers: int
    lanes: int
    k1: int
    windows: int

    @property
    def name(self) -> str:
        return f"V={self.words:,}, D={self.embedding}, {self.layers} x {self.hidden}, {self.lanes} lanes, k={self.k1}"

    @property
    def tokens_per_window(self) -> int:
        return self.lanes * self.k1

    def write_text(self, folder: Path) -> Path:
        """Writes files of random words, the same ones every time, and returns their folder."""
        draw, words = random.Random(1), [f"w{number}" for number in range(self.words)]
        text = folder / f"{self.words}-{self.windows}"
        text.mkdir(parents=True, exist_ok=True)
        for split, count in (("train", self.windows * self.tokens_per_window), ("valid", 2000), ("test", 2000)):
            # Every word at least once, so that the vocabulary has all of them; lines of 99 and their end.
            drawn = [*words, *draw.choices(words, k=max(0, count * 99 // 100 - self.words))]
            lines = [" ".join(drawn[at : at + 99]) for at in range(0, len(drawn), 99)]
            (text / f"{split}.txt").write_text("\n".join(lines) + "\n")
        return text

    def command_line(self, text: Path) -> list[str]:
        """Returns the arguments of `train.py` for one epoch, all that is not said here at its default."""
        return [
            "fit",
            f"--data.path={text}",
            "--data.tokenizer=word",
            f"--data.num_lanes={self.lanes}",
            "--model.core=LSTM",
            f"--model.core.input_size={self.embedding}",
            f"--model.core.hidden_size={self.hidden}",
            f"--model.core.num_layers={self.layers}",
            f"--model.k1={self.k1}",
            "--model.clip_norm=0.25",
            "--optimizer=Adam",
            "--optimizer.lr=1e-3",
            f"--lr_scheduler.num_steps={10 * self.windows}",
            "--trainer.max_steps=-1",
            "--trainer.max_epochs=1",
            "--trainer.check_val_every_n_epoch=1",
            "--trainer.val_check_interval=1.0",
            "--trainer.log_every_n_steps=20",
        ]


SHAPES = {
    "bytes": Shape(256, 64, 128, 1, 16, 64, 1000),
    "words": Shape(10_000, 200, 200, 2, 20, 20, 200),
    "large": Shape(10_000, 650, 650, 2, 20, 35, 40),
    "tiny": Shape(32, 8, 8, 1, 2, 8, 4000),
}
