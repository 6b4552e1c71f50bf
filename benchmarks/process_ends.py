"""Ends processes while they read a stream, and counts their exit statuses: all must be 0.

python benchmarks/process_ends.py                    200 ends over local parquet, beside 8 busy processes
python benchmarks/process_ends.py --slow_read 9      over HTTP, each end during a read that takes 9 seconds

Each process is forked from one that has imported everything, reads some batches, and ends as a program does: by
running off its end. It takes a while to end (0.2 s), as it would with more to clean up.
"""

import argparse
import http.server
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import datasets
import torch

from lit_tbptt import StreamedLanes
from lit_tbptt.data import document_stream, load_documents
from lit_tbptt.data.text.tokenizers import ByteTokenizer

READERS = 4


class TakesAWhile:
    """Keeps the interpreter in its end for a while."""

    def __del__(self, sleep=time.sleep):  # modules are gone by then
        sleep(0.2)


def write_corpus(folder, longest):
    """Four files of 1000 documents in 10 row groups."""
    if os.fork() == 0:  # so that no thread of pyarrow exists where the processes are forked
        for number in range(READERS):
            texts = ["abcdefgh" * (i * i % longest) for i in range(1000)]
            datasets.Dataset.from_dict({"text": texts}).to_parquet(folder / f"{number}.parquet", batch_size=100)
        os._exit(0)
    os.wait()


def serve(folder, seconds):
    """Serves the files from another process; when there is a file `slow`, the next read takes that many seconds."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            body, asked = (folder / self.path[1:]).read_bytes(), self.headers.get("Range")
            first, last = (int(part or len(body) - 1) for part in asked[6:].split("-")) if asked else (0, len(body) - 1)
            if self.command == "GET" and (folder / "slow").exists():
                (folder / "slow").rename(folder / "reading")
                time.sleep(seconds)
            self.send_response(206 if asked else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last - first + 1))
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[first : last + 1])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *of: None  # a reader that ends closes its connection
    child = os.fork()
    if child == 0:
        server.serve_forever()
    return child, f"http://127.0.0.1:{server.server_address[1]}"


def read(folder, number, url):
    if url:
        files = [f"{url}/{number}.parquet" for number in range(READERS)]
        documents = load_documents("parquet", load_options={"data_files": {"train": files}}, streaming=True)
    else:
        documents = load_documents(str(folder), streaming=True)
    stream = document_stream(documents["train"], "train")
    k1 = 6000 if url else 900
    batches = iter(StreamedLanes(stream, ByteTokenizer(), READERS, k1, 4, repeat=True, num_readers=READERS))
    for _ in range(random.Random(number).randrange(1, 20)):
        next(batches)
    if url:
        (folder / "slow").touch()
        while not (folder / "reading").exists():
            next(batches)
            time.sleep(0.02)
        (folder / "reading").unlink()
    return batches


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ends", type=int, default=200)
    parser.add_argument("--busy", type=int, default=8, help="processes that do nothing but run")
    parser.add_argument("--at_once", type=int, default=8, help="processes that read at once; 1 with --slow_read")
    parser.add_argument("--slow_read", type=float, default=0, help="seconds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    folder = Path(tempfile.mkdtemp())
    write_corpus(folder, 6000 if options.slow_read else 300)  # fsspec reads 5 MB of a file at once
    server, url = serve(folder, options.slow_read) if options.slow_read else (None, "")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    running, statuses, begun = set(), Counter(), time.monotonic()
    for number in range(options.ends + options.at_once):
        if running and (len(running) == (1 if url else options.at_once) or number >= options.ends):
            pid, status = os.wait()
            running.remove(pid)
            statuses[os.waitstatus_to_exitcode(status)] += 1
        if number < options.ends:
            child = os.fork()
            if child == 0:
                return read(folder, number, url), TakesAWhile()
            running.add(child)
    for process in busy:
        process.kill()
    if server:
        os.kill(server, 9)
    shutil.rmtree(folder)
    print(f"{options.ends} ends in {time.monotonic() - begun:.0f} s, by exit status: {dict(statuses)}")
    return None


if __name__ == "__main__":
    left = main()
