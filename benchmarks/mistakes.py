"""Runs mistakes and oddities of new users as real commands, and prints how the command line answers each.

    python benchmarks/mistakes.py --outputs outputs > table.md
    python benchmarks/mistakes.py --only streaming

The cases stand in mistakes.yaml, beside this file; its first lines say how. Each runs in a folder of its own with the
same small files and two finished runs. Prints a row a case: the command, its exit status, the first line of its message
(of a command that works, the last line it printed), and a verdict:

    ok                 it worked, or the message says what the case expects, in a few lines
    traceback          Python's traceback is shown
    wrong status       it failed and should work; it does not end; or another exit status than 2 of a refusal, 1 of a
                       run that failed, or the one that the case names
    silently ignored   it ended as if all were well, and what was asked for was not done
    unclear            the message lacks what the case expects, or is long
    left behind        a refused command left files

Exits with 1 where there is a traceback or something was silently ignored. About forty minutes on two cores. Linux.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers

ROOT = Path(__file__).resolve().parent.parent
# What the shell variable $SMALL of the cases holds: a model and lanes that train in no time.
SMALL = (
    "--model.core.hidden_size 8 --model.k1 5 --data.num_lanes 3 --data.eval_num_lanes 2 --data.windows_per_batch 2 "
    "--trainer.max_steps 3 --trainer.accelerator cpu --trainer.enable_model_summary false"
)
# The runs that every case finds: of bytes, and of characters.
FIRST_RUNS = (
    "python train.py fit $SMALL --data.path words",
    "python train.py fit $SMALL --data.path words --data.tokenizer char --runs_dir chars",
)
MOST_LINES = 12  # of a message that is still read
PATIENCE = 120  # seconds; a case may say otherwise
VERDICTS = ("ok", "traceback", "wrong status", "silently ignored", "unclear", "left behind")
NOT_OURS = (".cache", ".config", "__pycache__", "case.log")

CHINESE = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少。白日依山尽黄河入海流欲穷千里目更上一层楼。\n"


@dataclass
class Case:
    """A mistake, as it stands in mistakes.yaml.

    Attributes:
        name: What it is.
        source: Who thought of it: the issue, or a user who has read the README.
        run: The command, for a shell.
        expect: `works`, or the parts of the message.
        files: Text files to write first, by name.
        prepare: A command to run first.
        shows: What the output of a command that works must have.
        check: A command that fails where the effect is not what was asked for. The output is in case.log.
        status: The exit status; `any` where only the message counts.
        interrupt: A signal, and the pattern of the file at whose appearance it is sent.
        leaves: Whether a refused command may leave files.
        patience: Seconds.
    """

    name: str
    source: str
    run: str
    expect: str | list[str]
    files: dict[str, str] = field(default_factory=dict)
    prepare: str = ""
    shows: str | list[str] = field(default_factory=list)
    check: str = ""
    status: int | str | None = None
    interrupt: list[str] = field(default_factory=list)
    leaves: bool = False
    patience: float = PATIENCE


@dataclass
class Answer:
    """What a command answered: exit status, output, the files that are new, whether the case's check passed."""

    status: int | str
    output: str
    left: list[str]
    checked: bool


def read_cases(path: Path) -> tuple[list[Case], dict[str, str]]:
    """Returns the cases, and the texts of files that every case finds."""
    sections = yaml.safe_load(path.read_text())
    texts = sections.pop("files")
    return [Case(name, source, **case) for source, cases in sections.items() for name, case in cases.items()], texts


def prepare_files(folder: Path, texts: dict[str, str]) -> None:
    """Writes the files that every case finds."""
    for name in ("train.py", "README.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "configs", folder / "configs")
    lines = [f"{i} times {i} is {i * i} and half of {2 * i} is {i}" for i in range(120)]
    folder.joinpath("words").mkdir()
    for split, part in (("train", lines[:90]), ("valid", lines[40:60]), ("test", lines[60:80])):
        (folder / "words" / f"{split}.txt").write_text("\n".join(part) + "\n")
    texts = texts | {
        "book.txt": "\n".join(lines) + "\n",
        "crlf.txt": "\r\n".join(lines),
        "chinese.txt": CHINESE * 60,
        "rows.csv": "label,text\n" + "".join(f'{i},"{line}"\n' for i, line in enumerate(lines)),
        "semicolons.csv": "label;text\n" + "".join(f"{i};{line}\n" for i, line in enumerate(lines)),
        "rows.jsonl": "".join(json.dumps({"text": line}) + "\n" for line in lines),
        "content.jsonl": "".join(json.dumps({"content": line, "id": i}) + "\n" for i, line in enumerate(lines)),
        "numbers.jsonl": "".join(json.dumps({"text": i}) + "\n" for i in range(99)),
        "nulls.jsonl": "".join(json.dumps({"text": line if i % 3 else None}) + "\n" for i, line in enumerate(lines)),
        "list.json": json.dumps([{"text": line} for line in lines]),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    noise = torch.randint(0, 256, (3000,), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    (folder / "noise.bin").write_bytes(noise.numpy().tobytes())
    (folder / "latin1.txt").write_bytes("café crème, où ça\n".encode("latin-1") * 90)
    (folder / "gb18030.txt").write_bytes((CHINESE * 60).encode("gb18030"))
    (folder / "utf16.txt").write_bytes(("\n".join(lines)).encode("utf-16"))
    (folder / "bom.txt").write_bytes(("\n".join(lines)).encode("utf-8-sig"))
    Dataset.from_dict({"text": lines}).to_parquet(folder / "rows.parquet")
    words = {word: i for i, word in enumerate(["[UNK]", *sorted({word for line in lines for word in line.split()})])}
    library = Tokenizer(models.WordLevel(words, "[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.save(str(folder / "tokenizer.json"))
    torch.save(torch.nn.LSTM(8, 8).state_dict(), folder / "weights.pt")
    torch.save({"epoch": 3, "global_step": 7, "state_dict": {}, "pytorch-lightning_version": "2.6"}, folder / "pl.ckpt")


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "SMALL": SMALL,
        "HOME": str(folder),
        "HF_HOME": str(folder / ".cache" / "hf"),
        "MPLCONFIGDIR": str(folder / ".config"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }


def contents(folder: Path) -> set[str]:
    paths = {path.relative_to(folder) for path in folder.rglob("*")}
    return {str(path) for path in paths if not any(part in NOT_OURS for part in path.parts)}


def execute(case: Case, files: Path, work: Path, outputs: Path | None) -> Answer:
    """Runs a case in a copy of the files."""
    folder = work / re.sub(r"\W+", "_", case.name)
    shutil.copytree(files, folder, symlinks=True)
    for name, text in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    variables, shell = environment(folder), ["bash", "-c"]
    if case.prepare:
        subprocess.run([*shell, case.prepare], cwd=folder, env=variables, check=True, capture_output=True)
    before, log = contents(folder), folder / "case.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*shell, case.run],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that a signal reaches all of it, as from a terminal
        )
        try:
            if case.interrupt:
                name, pattern = case.interrupt
                ends = time.monotonic() + case.patience
                while process.poll() is None and not any(folder.glob(pattern)) and time.monotonic() < ends:
                    time.sleep(0.02)
                os.killpg(process.pid, signal.Signals[name])
            status: int | str = process.wait(case.patience)
        except subprocess.TimeoutExpired:
            status = "no end"
        if status == "no end":
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    check = subprocess.run([*shell, case.check or "true"], cwd=folder, env=variables, capture_output=True)
    left = sorted(contents(folder) - before)
    output = log.read_text(errors="replace").replace(f"{folder}/", "").replace(f"{ROOT}/", "")
    answer = Answer(status, output, left, not check.returncode)
    if outputs is not None:
        shutil.copy(log, outputs / f"{folder.name}.txt")
    shutil.rmtree(folder)
    return answer


def message(answer: Answer) -> list[str]:
    """Returns the lines that say what is wrong, or all lines."""
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", answer.output) if line.strip()]
    # After a progress bar that was broken off, the message begins within its line.
    said = [(i, re.search(r"(error|stopped|usage): ", line)) for i, line in enumerate(lines)]
    first = next(((i, match.start()) for i, match in said if match), (0, 0))
    return [lines[first[0]][first[1] :], *lines[first[0] + 1 :]] if answer.status and lines else lines


def verdict(case: Case, answer: Answer) -> str:
    """Judges an answer; see the file's docstring."""
    works = case.expect == "works"
    parts = case.shows if works else case.expect
    parts = [parts] if isinstance(parts, str) else parts
    text = "\n".join(message(answer)) if answer.status and not works else answer.output
    lacks = any(part.lower() not in text.lower() for part in parts)
    if "Traceback (most recent call last)" in answer.output:
        return "traceback"
    if case.status == "any":
        missed = "unclear" if answer.status else "silently ignored"
        return missed if lacks or not answer.checked else "ok"
    if works or case.status is not None:
        if answer.status != (case.status or 0):
            return "wrong status"
        return "silently ignored" if lacks or not answer.checked else "ok"
    if answer.status == 0:
        return "silently ignored"
    if answer.status != (1 if text.startswith("stopped: ") else 2):
        return "wrong status"
    if lacks or len(message(answer)) > MOST_LINES:
        return "unclear"
    return "left behind" if answer.left and not case.leaves else "ok" if answer.checked else "silently ignored"


def head(*names: str) -> str:
    return f"| {' | '.join(names)} |\n{'|---' * len(names)}|"


def row(case: Case, answer: Answer) -> str:
    lines = message(answer) or ["(nothing)"]
    shown = lines[0] if answer.status and case.expect != "works" else lines[-1]
    shown = "".join(character if character.isprintable() else "?" for character in shown)
    cells = (case.name, f"`{' '.join(case.run.split())}`", str(answer.status), shown[:220], verdict(case, answer))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the cases whose names have this part")
    parser.add_argument("--outputs", type=Path, help="a folder for all that each command printed")
    parser.add_argument("--at_once", type=int, default=2, help="commands that run at the same time")
    asked = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # commands would inherit that a background job ignores it
    cases, texts = read_cases(Path(__file__).with_suffix(".yaml"))
    cases = [case for case in cases if asked.only in case.name]
    if asked.outputs is not None:
        asked.outputs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lit_tbptt_mistakes_") as name:
        files, work = Path(name, "files"), Path(name, "work")
        files.mkdir()
        work.mkdir()
        prepare_files(files, texts)
        for first in FIRST_RUNS:
            variables = environment(work)
            subprocess.run(["bash", "-c", first], cwd=files, env=variables, check=True, capture_output=True)
        print(f"`SMALL='{SMALL}'`\n\n{head('case', 'command', 'status', 'message', 'verdict')}", flush=True)
        counts: dict[str, Counter[str]] = {case.source: Counter() for case in cases}
        with ThreadPoolExecutor(asked.at_once) as pool:
            answers = pool.map(lambda case: execute(case, files, work, asked.outputs), cases)
            try:
                for case, answer in zip(cases, answers, strict=True):
                    counts[case.source][verdict(case, answer)] += 1
                    print(row(case, answer), flush=True)
            finally:
                pool.shutdown(cancel_futures=True)  # after Ctrl-C no further case begins
    print("\n" + head("thought of by", "cases", *VERDICTS))
    for source, found in counts.items():
        print(f"| {source} | {found.total()} | " + " | ".join(str(found[each]) for each in VERDICTS) + " |")
    total: Counter[Any] = sum(counts.values(), Counter())
    sys.exit(1 if total["traceback"] or total["silently ignored"] else 0)


if __name__ == "__main__":
    main()
