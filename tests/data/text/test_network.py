"""Streams over a network that fails, and files that are damaged: nothing lost, nothing twice, or a clear stop."""

import contextlib
import http.server
import json
import socket
import struct
import threading
from dataclasses import replace
from itertools import chain

import datasets
import pytest
import torch
from datasets import Dataset

from lit_tbptt import SourceError
from lit_tbptt.cli import main
from lit_tbptt.data import document_stream, load_documents
from lit_tbptt.data.text import network
from lit_tbptt.data.text.stream import TextReader

TEXTS = [chr(97 + i % 26) * (i * i % 40 + 1) for i in range(300)]
SHARDS = 3
EXPECTED = [text for shard in range(SHARDS) for text in TEXTS[shard::SHARDS]]
TROUBLES = ("reset", "500", "cut", "stall")


class Server:
    """Serves a folder with ranges, as a web server does, and fails at the given requests.

    Attributes:
        troubles: What happens to request number n of those that ask for data.
        down: Whether every request fails.
        lasts: Requests after which every one fails.
        requests: The paths asked for, in order.
    """

    def __init__(self, folder):
        self.folder, self.troubles, self.requests, self.connections = folder, {}, [], []
        self.down, self.lasts = False, 10**6
        self.silence = threading.Event()
        handler = type("Handler", (Handler,), {"about": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.silence.set()
        self.server.shutdown()
        for connection in self.connections:  # which the other side would keep
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for its headers to be acknowledged

    def setup(self):
        super().setup()
        self.about.connections.append(self.connection)

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.reply(None)

    def do_GET(self):
        self.about.requests.append(self.path)
        self.about.down = self.about.down or len(self.about.requests) > self.about.lasts
        self.reply("500" if self.about.down else self.about.troubles.get(len(self.about.requests)))

    def reply(self, trouble):
        file = self.about.folder / self.path[1:]
        if trouble == "500" or not file.exists():
            self.send_response(500 if trouble else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if trouble == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        body, asked = file.read_bytes(), self.headers.get("Range")
        first, last = (int(part or len(body) - 1) for part in asked[6:].split("-")) if asked else (0, len(body) - 1)
        part = body[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(body)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if trouble in ("cut", "stall"):
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            if trouble == "stall":
                self.about.silence.wait(20)
            self.close_connection = True
            return
        self.wfile.write(part)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "WAITS", (0,) * 9)
    monkeypatch.setattr(network, "_STALL", 0.5)
    for name in ("READ", "OPEN"):
        monkeypatch.setattr(datasets.config, f"STREAMING_{name}_RETRY_INTERVAL", 0)
        monkeypatch.setattr(datasets.config, f"STREAMING_{name}_MAX_RETRIES", 2)
    folder = tmp_path / "served"
    folder.mkdir()
    for shard in range(SHARDS):
        texts = TEXTS[shard::SHARDS]
        Dataset.from_dict({"text": texts}).to_parquet(folder / f"{shard}.parquet", batch_size=60)
        (folder / f"{shard}.json").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    serving = Server(folder)
    yield serving
    serving.close()


def documents_on(server, kind):
    files = [f"{server.url}/{shard}.{kind}" for shard in range(SHARDS)]
    return load_documents(kind, load_options={"data_files": {"train": files}}, streaming=True)["train"]


def reader_of(documents):
    """Reads seven rows at a time."""
    return TextReader(replace(document_stream(documents, "train"), rows_per_read=7))


def received(reader):
    return list(chain.from_iterable(iter(reader.read, None)))


@pytest.mark.parametrize("kind", ["parquet", "json"])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_is_received_is_what_is_in_the_files(server, kind, trouble):
    documents = documents_on(server, kind)
    server.requests.clear()
    assert received(reader_of(documents)) == EXPECTED
    for request in range(1, len(server.requests) + 1, 4 if trouble == "stall" else 1):
        server.requests.clear()
        server.troubles = {request: trouble, request + 2: trouble}
        assert received(reader_of(documents)) == EXPECTED, request


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_a_server_that_stays_away_is_named_with_the_place(server, kind):
    reader = reader_of(documents_on(server, kind))
    found = reader.read() + reader.read()
    server.down = True
    with pytest.raises(
        SourceError, match=rf"{server.url}/[012]\.{kind}, after row \d+ of reader 0 of the train split: "
    ):
        found.extend(chain.from_iterable(iter(reader.read, None)))
    server.down = False
    assert 14 <= len(found) < len(EXPECTED)
    assert found + received(reader) == EXPECTED


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_a_missing_file_is_named(server, kind, monkeypatch):
    if kind == "parquet":  # for lists of other files, `datasets` cannot tell a missing one from a server that is down
        monkeypatch.setattr(network, "WAITS", (1000,))
    reader = reader_of(documents_on(server, kind))
    (server.folder / f"2.{kind}").unlink()
    with pytest.raises(SourceError, match=rf"{server.url}/2\.{kind}, after row"):
        received(reader)


@pytest.mark.parametrize(
    ("kind", "damage"), [("parquet", b"PAR1 no more"), ("json", b'{"text": "a"}\n{"text": '), ("txt", b"abc\xff\n")]
)
def test_a_damaged_file_is_named(tmp_path, kind, damage):
    for shard in range(SHARDS):
        file = tmp_path / f"{shard}.{kind}"
        if kind == "parquet":
            Dataset.from_dict({"text": TEXTS}).to_parquet(file)
        else:
            file.write_text("\n".join(json.dumps({"text": text}) if kind == "json" else text for text in TEXTS))
    documents = load_documents(str(tmp_path), streaming=True)["train"]
    (tmp_path / f"1.{kind}").write_bytes(damage)
    with pytest.raises(SourceError, match=rf"/1\.{kind}, .* the train split: "):
        received(reader_of(documents))


def test_an_error_of_a_mapped_function_is_its_own():
    documents = Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(2)
    mapped = documents.map(lambda row: {"text": row["text"][:5] if "z" not in row["text"] else 1 / 0})
    with pytest.raises(ZeroDivisionError):
        received(reader_of(mapped.select_columns(["text"])))


def test_text_files_are_never_read_on_after_a_failure_inside_of_them(tmp_path):
    """The reader of text that `datasets` would call again has lost what it had decoded: see docs/log.md."""
    (tmp_path / "train.txt").write_text("a\n")
    load_documents(str(tmp_path), streaming=True)
    assert datasets.config.STREAMING_READ_MAX_RETRIES == 1


@pytest.mark.slow
def test_a_run_that_lost_its_server_continues(server, tmp_path, monkeypatch):
    """The checkpoint that it leaves is good, and the run ends as the one that never lost it."""
    monkeypatch.chdir(tmp_path)
    config = {
        "data": {
            "path": "json",
            "load_options": {"data_files": {"train": [f"{server.url}/{shard}.json" for shard in range(SHARDS)]}},
            "streaming": True,
            "num_readers": 3,
            "num_lanes": 3,
            "windows_per_batch": 1,
            "repeat": True,
        },
        "model": {"k1": 8, "core": {"class_path": "RNN", "init_args": {"hidden_size": 7}}},
        "trainer": {"max_steps": 400, "enable_progress_bar": False, "enable_model_summary": False},
        "checkpoint": {"every_n_steps": 5},
    }
    (tmp_path / "net.yaml").write_text(json.dumps(config))
    main(["fit", "--config", "net.yaml", "--run_name", "undisturbed"])
    # A pass over the corpus is 250 steps, and the server goes away when the second one has begun.
    server.lasts = len(server.requests) - 2
    server.requests.clear()
    disturbed = ["fit", "--config", "net.yaml", "--run_name", "disturbed"]
    with pytest.raises(SystemExit, match=rf"stopped: {server.url}/\d.json, after row 0 of reader . of the train split"):
        main(disturbed)
    server.down, server.lasts = False, 10**6
    main([*disturbed, "--ckpt_path", "last"])
    ends = [
        torch.load(f"runs/net/{name}/checkpoints/last.ckpt", weights_only=True) for name in ("undisturbed", "disturbed")
    ]
    assert ends[0]["global_step"] == ends[1]["global_step"] == 400
    for name, weights in ends[0]["state_dict"].items():
        assert torch.equal(weights, ends[1]["state_dict"][name])
