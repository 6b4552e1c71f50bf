"""How fast the lanes give windows, and how much memory a stream takes.

    python benchmarks/loader.py speed --path FOLDER
    python benchmarks/loader.py memory --path FOLDER
    python benchmarks/loader.py seek --path FOLDER

`speed`: tokens per second of streamed and of strided lanes (16 lanes, k1 = 64, 8 windows per batch) with a byte, a word
and a byte-pair tokenizer, beside the same dataset object iterated over and tokenized and nothing else: row by row, and
in batches of as many rows as the lanes read. They take turns; ratios are medians over the rounds, with quartiles.
`memory`: resident memory while the text files of FOLDER are streamed again and again under other names, 2 GB in all, by
four readers (Linux). `seek`: seconds from a position to its first batch, in one file of 200 MB of lines, JSON lines or
parquet (in row groups of 1000).
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import datasets
from jsonargparse import auto_cli
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import models, pre_tokenizers, trainers

from lit_tbptt import Batch, StreamedLanes, StridedLanes
from lit_tbptt.data import Tokenizer, document_stream, make_tokenizer
from lit_tbptt.data.text.stream import DocumentStream
from lit_tbptt.data.text.token_file import token_file

LANES, K1, WINDOWS = 16, 64, 8


def paragraphs(path: str) -> datasets.Dataset:
    """Returns the paragraphs of the text files of a folder."""
    texts = [file.read_text(errors="replace") for file in sorted(Path(path).glob("*.txt"))]
    return datasets.Dataset.from_dict({"text": [part for text in texts for part in text.split("\n\n") if part]})


def tokenizers(documents: datasets.Dataset, folder: str) -> dict[str, Tokenizer]:
    """Makes one of each kind."""
    library = HubTokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.train_from_iterator(documents["text"], trainers.BpeTrainer(vocab_size=8192, show_progress=False))
    library.save(f"{folder}/tokenizer.json")
    names = {"byte": "byte", "word": "word", "byte-pair": f"{folder}/tokenizer.json"}
    return {name: make_tokenizer(given, documents["text"]) for name, given in names.items()}


def seconds(run: Callable[[], object]) -> float:
    """Returns the time of a run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def quartiles(ratios: list[float]) -> str:
    """Returns the median, and the quartiles in brackets."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def plain_rows(stream: DocumentStream, tokenizer: Tokenizer) -> int:
    """Iterates over the dataset as it is, and tokenizes."""
    return sum(len(ids) for row in stream.documents for ids in tokenizer.encode_documents([row["text"]]))


def plain_batches(stream: DocumentStream, tokenizer: Tokenizer) -> int:
    """Iterates over it in batches, and tokenizes."""
    batches = stream.documents.iter(stream.rows_per_read)
    return sum(len(ids) for batch in batches for ids in tokenizer.encode_documents(batch["text"]))


def count(batches: Iterable[Batch]) -> int:
    """Returns the number of targets."""
    windows = (window for batch in batches for window in batch.windows)
    return sum(window.targets.numel() if window.mask is None else int(window.mask.sum()) for window in windows)


def speed(path: str, rounds: int = 7) -> None:
    """Prints the table of speeds."""
    with tempfile.TemporaryDirectory() as folder:
        stored = paragraphs(path)
        stored.to_parquet(f"{folder}/corpus.parquet")
        documents = datasets.load_dataset("parquet", data_files=f"{folder}/corpus.parquet", streaming=True)["train"]
        stream = document_stream(documents, "train")
        print("| tokenizer | rows | batches of rows | streamed | strided | streamed / rows | streamed / batches |")
        print("|---|---|---|---|---|---|---|")
        for name, tokenizer in tokenizers(stored, folder).items():
            tokens = token_file(stored, tokenizer, Path(folder), "train")
            strided = StridedLanes(tokens.ids, tokenizer.eos, LANES, K1, WINDOWS)
            runs: dict[str, Callable[[], int]] = {
                "rows": partial(plain_rows, stream, tokenizer),
                "batches": partial(plain_batches, stream, tokenizer),
                "streamed": partial(count, StreamedLanes(stream, tokenizer, LANES, K1, WINDOWS)),
                "strided": partial(count, strided),
            }
            for run in runs.values():  # a round to warm up, and to see that they read the same
                assert run() == tokens.num_tokens
            times = [{kind: seconds(run) for kind, run in runs.items()} for _ in range(rounds)]
            speeds = [f"{tokens.num_tokens / statistics.median(t[kind] for t in times) / 1e6:.2f} M" for kind in runs]
            ratios = [quartiles([t[kind] / t["streamed"] for t in times]) for kind in ("rows", "batches")]
            print(f"| {' | '.join([name, *speeds, *ratios])} |", flush=True)
            batch = statistics.median(t["strided"] for t in times) / len(strided)
            print(f"{name}: a strided batch of {WINDOWS} windows takes {batch * 1e3:.2f} ms", file=sys.stderr)


def memory(path: str, gigabytes: float = 2.0, streams: str = "text") -> None:
    """Prints resident memory against what was read.

    Args:
        path: Folder of text files.
        gigabytes: How much to read.
        streams: text, one document a file, or parquet, one a paragraph.
    """

    def resident() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    with tempfile.TemporaryDirectory() as folder:
        files = sorted(Path(path).glob("*.txt"))
        if streams == "parquet":
            paragraphs(path).to_parquet(f"{folder}/source")
            files = [Path(f"{folder}/source")]
        size = sum(file.stat().st_size for file in files)
        for copy in range(int(gigabytes * 1e9 / size) + 1):
            for number, file in enumerate(files):
                os.symlink(file.resolve(), f"{folder}/{copy:05}-{number}.{streams.replace('text', 'txt')}")
        options = {"sample_by": "document"} if streams == "text" else {}
        suffix = "txt" if streams == "text" else "parquet"
        documents = datasets.load_dataset(streams, data_files=f"{folder}/*.{suffix}", streaming=True, **options)
        stream = document_stream(documents["train"], "train")
        lanes = StreamedLanes(stream, make_tokenizer("byte", ()), LANES, K1, WINDOWS, num_readers=4)
        print("| MB read | resident MB |\n|---|---|")
        step, done = 100_000_000, 0
        for batch in lanes:
            done += len(batch.windows) * LANES * K1
            if done >= step:
                print(f"| {done / 1e6:.0f} | {resident():.0f} |", flush=True)
                step += 100_000_000


def seek(path: str, megabytes: int = 200) -> None:
    """Prints how long it takes to begin at several places of one file."""
    with tempfile.TemporaryDirectory() as folder:
        stored = paragraphs(path)
        stored = datasets.concatenate_datasets([stored] * (1 + megabytes * 1_000_000 // stored.data.nbytes))
        stored.to_json(f"{folder}/corpus.json")
        stored.to_parquet(f"{folder}/corpus.parquet", batch_size=1000)
        with open(f"{folder}/corpus.txt", "w") as file:
            file.writelines(f"{text}\n" for text in stored["text"])
        print("| | start | 10 % | 50 % | 90 % |\n|---|---|---|---|---|")
        for kind, name in (("text", "corpus.txt"), ("json", "corpus.json"), ("parquet", "corpus.parquet")):
            documents = datasets.load_dataset(kind, data_files=f"{folder}/{name}", streaming=True)["train"]
            stream = document_stream(documents.select_columns(["text"]), "train")
            lanes = StreamedLanes(stream, make_tokenizer("byte", ()), LANES, K1, WINDOWS)
            positions = [batch.position for batch in lanes]
            cells = []
            for share in (0, 0.1, 0.5, 0.9):
                state = {"position": positions[int(share * len(positions))], "skip": 0, "epoch": 0}
                times = []
                for _ in range(3):
                    lanes.load_state_dict(state)
                    times.append(seconds(partial(next, iter(lanes))))
                cells.append(f"{statistics.median(times):.2f} s")
            print(f"| {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    auto_cli({"speed": speed, "memory": memory, "seek": seek}, as_positional=False)
