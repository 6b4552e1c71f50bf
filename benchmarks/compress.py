"""Online coding of a file by a model that learns as it goes, beside compressors: a table, and the curve as a picture.

    python benchmarks/compress.py FILE OUT

Runs `train.py fit --config configs/online_coding.yaml`, in which every byte is scored before it is trained on, and adds
up `metrics.csv`. What the sum leaves out of a compressed file: the arithmetic coder's rounding, well below .01 %, the
length of the text, and the program. Lanes are read side by side, as by NNCP, so a decoder can run them in parallel.
A run that was stopped is continued by the same command.
"""

import csv
import gzip
import lzma
import math
import shutil
import subprocess
import sys
from pathlib import Path

from jsonargparse import auto_cli

ROOT = Path(__file__).resolve().parent.parent
# Bits per byte of other programs on text, with their source; the text is another, so they only give the order.
PUBLISHED = {
    "lstm-compress, enwik8 (100 MB)": 1.64,
    "NNCP, LSTM of 542 thousand weights, enwik8": 1.64,
    "StateSMix, enwik8's first 1 MB": 2.123,
    "xz on the same 1 MB": 2.326,
}


def code(file: Path, out: Path, config: Path, options: tuple[str, ...]) -> Path:
    """Returns the folder of the run over a file."""
    run, said = out / config.stem / file.name, out / f"{file.name}.log"
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", str(config), f"--data.path={file}"]
    command += [f"--runs_dir={out}", f"--run_name={file.name}", "--trainer.enable_progress_bar=false", *options]
    if (run / "checkpoints" / "last.ckpt").exists():
        command.append(f"--ckpt_path={run}")
    with open(said, "a") as log:
        failed = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if failed:
        sys.exit(f"{said.read_text().splitlines()[-1]}\n(all of it is in {said})")
    return run


def curve(run: Path) -> tuple[list[int], list[float]]:
    """Returns bytes coded so far, and the bits spent on them."""
    places, bits = [0], [0.0]
    with open(run / "metrics.csv", newline="") as rows:
        for row in csv.DictReader(rows):
            if row.get("train/nats_per_token"):
                coded = int(row["tokens"])
                bits.append(bits[-1] + (coded - places[-1]) * float(row["train/nats_per_token"]) / math.log(2))
                places.append(coded)
    return places, bits


def compressed(file: Path) -> dict[str, int]:
    """Returns the bytes of a file under other compressors."""
    text = file.read_bytes()
    sizes = {"gzip -9": len(gzip.compress(text, 9)), "xz": len(lzma.compress(text))}
    if shutil.which("zstd"):
        sizes["zstd -19"] = len(subprocess.run(["zstd", "-19", "-c", file], stdout=subprocess.PIPE, check=True).stdout)
    return sizes


def draw(curves: dict[str, tuple[list[int], list[float]]], lines: dict[str, float], path: Path) -> None:
    """Draws the bits per byte so far over the position, and those of compressors for the whole file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name, (places, bits) in curves.items():
        axes.plot(places[1:], [b / p for p, b in zip(places[1:], bits[1:], strict=True)], label=name)
    for number, (name, value) in enumerate(lines.items()):
        axes.axhline(value, color=f"C{number + len(curves)}", linestyle="--", label=f"{name}, whole file")
    axes.set(xscale="log", xlabel="bytes coded", ylabel="bits per byte so far", ylim=(1, 6))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main(
    file: Path,
    out: Path,
    config: Path = ROOT / "configs" / "online_coding.yaml",
    options: tuple[str, ...] = (),
    picture: Path | None = None,
) -> None:
    """Codes a file, and prints the table.

    Args:
        file: A text file.
        out: The folder of the run.
        config: The model.
        options: Further options of `fit`.
        picture: The file of the picture. Left out: in the folder of the run.
    """
    if not file.is_file():
        sys.exit(f"{file}: there is no such file")
    file, out = file.resolve(), out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    run = code(file, out, config.resolve(), options)
    places, bits = curve(run)
    num_bytes = file.stat().st_size
    # The lanes code one token more than there are bytes, the end of the document.
    lines = {name: 8 * size / num_bytes for name, size in compressed(file).items()}
    print(f"{file.name}, {num_bytes:,} bytes\n\n| | bits per byte |\n|---|---|")
    for share in (0.01, 0.1, 0.5):
        reached = next(number for number, place in enumerate(places) if place >= share * num_bytes)
        print(f"| this model, the first {places[reached]:,} bytes | {bits[reached] / places[reached]:.3f} |")
    print(f"| **this model, the whole file** | **{bits[-1] / num_bytes:.3f}** |")
    for name, value in lines.items():
        print(f"| {name} | {value:.3f} |")
    for name, value in PUBLISHED.items():
        print(f"| {name} (published, other text) | {value} |")
    draw({"this model": (places, bits)}, lines, picture or run / "coding.png")


if __name__ == "__main__":
    auto_cli(main)
