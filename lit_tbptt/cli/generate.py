"""The command `generate`: continues prompts from a checkpoint. It needs no trainer."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_tbptt.cli.loading import open_model
from lit_tbptt.cli.messages import visible
from lit_tbptt.cli.text_files import json_lines, read_text
from lit_tbptt.cores import RecurrentCore
from lit_tbptt.data.text.tokenizers import UNKNOWN, CharTokenizer, Tokenizer
from lit_tbptt.errors import InputError
from lit_tbptt.text_model import TextModel

# Prompts processed together. More would take more memory, and would be written later.
_TOGETHER = 64


def generate(
    ckpt_path: str,
    prompt: str = "",
    prompt_file: str | None = None,
    num_tokens: int = 400,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: str | None = None,
    seed: int = 1,
    out: str | None = None,
    core: type[RecurrentCore] | None = None,
    config: str | None = None,
    run_name: str | None = None,
    runs_dir: str = "runs",
    device: str = "auto",
) -> None:
    """Continue prompts from a checkpoint.

    Args:
        ckpt_path: The checkpoint, a path, last, or best; or a folder that export wrote. Nothing else is needed.
        prompt: What to continue: one text, a list of them, ["a", "b"], or - for the standard input.
        prompt_file: A file of prompts: one per line, or JSON lines with the key prompt if its name ends in .jsonl.
        num_tokens: Number of tokens to generate.
        temperature: Divides the logits before sampling; 0 always takes the most likely token.
        top_k: Sample only from the k most likely tokens. Left out: from all.
        top_p: Sample only from the fewest most likely tokens whose probabilities sum to p or more. Left out: from all.
        stop: End a text before the first occurrence of this string.
        seed: The same seed gives the same text.
        out: Write prompts and texts to this file, as JSON lines, instead of the terminal.
        core: The class of the checkpoint's core, if it is your own; it is never imported from the checkpoint alone.
        config: The config file of the run that last and best refer to.
        run_name: The name of that run. Left out: the one that was written to most recently.
        runs_dir: The folder of all runs.
        device: Where to compute, such as cpu or cuda. auto: a GPU if there is one.
    """
    prompts = _prompts(prompt, prompt_file)
    model = open_model(ckpt_path, core, config, run_name, runs_dir, device)
    _note_unknown(model.tokenizer, prompts)
    options: dict[str, Any] = {
        "num_tokens": num_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "stop": stop,
    }
    texts = _texts(model, prompts, seed, options)
    if out is not None:
        with json_lines(out, [] if prompt_file is None else [prompt_file]) as write:
            for given, text in texts:
                write({"prompt": given, "text": text})
    elif len(prompts) == 1:
        pieces = model.stream(prompts[0], seed=seed, **options)
        _show(prompts[0] + next(pieces, ""))  # what is refused is refused before anything is printed
        try:
            for piece in pieces:
                _show(piece)
        finally:  # after Ctrl-C too
            _show("\n")
    else:
        for given, text in texts:
            _show(f"{given}{text}\n")


def _texts(model: TextModel, prompts: Sequence[str], seed: int, options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for first in range(0, len(prompts), _TOGETHER):
        some = list(prompts[first : first + _TOGETHER])
        yield from zip(some, model.generate(some, seed=seed + first, **options), strict=True)


def _note_unknown(tokenizer: Tokenizer, prompts: list[str]) -> None:
    if isinstance(tokenizer, CharTokenizer):  # whose unknown characters are refused
        return
    encoded = tokenizer.encode(prompts)
    if num_unknown := tokenizer.num_unknown(prompts, encoded):
        share = f"{num_unknown} of the {sum(map(len, encoded))}"
        print(f"note: {share} tokens of the prompt are not in the vocabulary: {UNKNOWN}", file=sys.stderr)


def _prompts(prompt: str, file: str | None) -> list[str]:
    if file is None:
        prompts = [_standard_input()] if prompt == "-" else _listed(prompt)
    elif prompt != "":
        raise InputError("prompt and prompt_file: give one of them")
    else:
        prompts = _prompts_of(file)
    for text in prompts:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"prompt={text!r}: is not UTF-8 text")
    return prompts


def _listed(prompt: str) -> list[str]:
    try:
        texts = yaml.safe_load(prompt) if prompt.startswith("[") else None
    except yaml.YAMLError:  # a text that begins with a bracket
        texts = None
    if texts == []:
        raise InputError("prompt=[]: at least one is needed")
    return texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else [prompt]


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")  # of echo
    except UnicodeDecodeError as error:
        raise InputError(f"prompt: byte {error.start} of the standard input is not UTF-8 text") from error


def _prompts_of(file: str) -> list[str]:
    lines = read_text(file, "prompt_file").split("\n")
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f"prompt_file: {file} is empty")
    if Path(file).suffix != ".jsonl":
        return lines
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"prompt_file: {file}, line {number}: not JSON ({error})") from error
        given = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(given, str):
            raise InputError(f"prompt_file: {file}, line {number}: must be an object with a text under the key prompt")
        prompts.append(given)
    return prompts


def _show(text: str) -> None:
    """Prints at once, and what the terminal has no characters for as question marks."""
    encoding = sys.stdout.encoding or "utf-8"
    text = visible(text) if sys.stdout.isatty() else text
    print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)
