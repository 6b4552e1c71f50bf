"""The command `score`: the loss of a checkpoint's model on text files, per file or per token. Needs no trainer."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lit_tbptt.cli.loading import open_model
from lit_tbptt.cli.text_files import json_lines, read_text
from lit_tbptt.cores import RecurrentCore
from lit_tbptt.data.text.tokenizers import EOS, UNKNOWN, Tokenizer
from lit_tbptt.errors import InputError
from lit_tbptt.models.scoring import DocumentScore, Score


def score(
    files: list[str],
    /,
    ckpt_path: str,
    tokens: bool = False,
    out: str | None = None,
    core: type[RecurrentCore] | None = None,
    config: str | None = None,
    run_name: str | None = None,
    runs_dir: str = "runs",
    device: str = "auto",
) -> None:
    """Score text files: nats and bits per byte of each file and of all together. Each file is a separate document.

    Args:
        files: Text files, in UTF-8.
        ckpt_path: The checkpoint, a path, last, or best; or a folder that export wrote. Nothing else is needed.
        tokens: Whether to write a row for each token instead of each file. Needs out.
        out: Also write the rows to this file, as JSON lines.
        core: The class of the checkpoint's core, if it is your own; it is never imported from the checkpoint alone.
        config: The config file of the run that last and best refer to.
        run_name: The name of that run. Left out: the one that was written to most recently.
        runs_dir: The folder of all runs.
        device: Where to compute, such as cpu or cuda. auto: a GPU if there is one.
    """
    if tokens and out is None:
        raise InputError("tokens=true: needs out, the file to write them to")
    for file in files:
        if not Path(file).is_file():
            raise InputError(f"score: {file} is no file" if Path(file).exists() else f"score: {file}: no such file")
    model = open_model(ckpt_path, core, config, run_name, runs_dir, device)
    width = max(len(name) for name in (*files, "total"))
    print(" " * width + "".join(f"{column:>15}" for column in ("tokens", "bytes", "nats", "nats/token", "bits/byte")))
    together = Score()
    with nullcontext() if out is None else json_lines(out, files) as write:
        for file, scored in zip(files, model.scores(map(_document, files)), strict=True):
            together += scored.total
            print(f"{file:{width}}{_cells(scored.total)}", flush=True)
            if write is not None:
                for row in _token_rows(scored, model.tokenizer) if tokens else [_values(scored.total)]:
                    write({"document": file, **row})
    if len(files) > 1:
        print(f"{'total':{width}}{_cells(together)}")
    if together.num_unknown:
        print(f"There are no bits per byte where text is not in the vocabulary: {UNKNOWN} does not say what it was.")


def _document(file: str) -> str:
    text = read_text(file, "score")
    if not text:
        raise InputError(f"score: {file} is empty")
    return text


def _cells(score: Score) -> str:
    bits = f"{score.num_unknown / score.num_tokens:.1%} {UNKNOWN}" if score.bits_per_byte is None else None
    numbers = f"{score.num_tokens:15,}{score.num_bytes:15,}{score.nats:15,.2f}{score.nats / score.num_tokens:15.4f}"
    return numbers + (f"{score.bits_per_byte:15.4f}" if bits is None else f"{bits:>15}")


def _values(score: Score) -> dict[str, Any]:
    share = score.num_unknown / score.num_tokens
    last = {"unknown_share": share} if score.bits_per_byte is None else {"bits_per_byte": score.bits_per_byte}
    return {"tokens": score.num_tokens, "bytes": score.num_bytes, "nats": score.nats, **last}


def _token_rows(scored: DocumentScore, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    for token, nats in zip(scored.tokens.tolist(), scored.nats.tolist(), strict=True):
        text = EOS if token == tokenizer.eos else tokenizer.decode([token])
        yield {"id": token, "token": text, "nats": nats}
