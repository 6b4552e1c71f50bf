"""The thread that reads ahead ends when it is no longer needed."""

import ctypes
import threading
import time
from pathlib import Path

from letters import UNEVEN, streamed
from processes import PATIENCE, start, status_of
from sources import files

from lit_tbptt import StreamedLanes
from lit_tbptt.data import document_stream, load_documents
from lit_tbptt.data.text.network import read_with_retries
from lit_tbptt.data.text.read_ahead import ReadAhead
from lit_tbptt.data.text.tokenizers import ByteTokenizer


def test_a_reader_ends_with_its_iterator():
    def running():
        return [thread for thread in threading.enumerate() if thread.name == "lit_tbptt reader"]

    before = running()
    batches = iter(streamed(UNEVEN, 2, 3, repeat=True))
    next(batches)
    assert len(running()) == len(before) + 1
    batches.close()
    for thread in running():
        thread.join(PATIENCE)
    assert running() == before


def read_and_end(folder):
    stream = document_stream(load_documents(str(folder), streaming=True)["train"], "train")
    batches = iter(StreamedLanes(stream, ByteTokenizer(), 4, 8, 4, repeat=True, num_readers=2))
    print(len([next(batches) for _ in range(7)]), flush=True)
    ctypes.pythonapi.Py_Exit(0)  # the interpreter ends as after a program's last line


def test_a_process_ends_while_its_stream_is_read(tmp_path):
    """A thread that is stopped inside a library would abort the process."""
    files("parquet")(tmp_path)
    ends = [start(read_and_end, tmp_path, log=tmp_path / f"{number}.log") for number in range(3)]
    for number, end in enumerate(ends):
        assert (status_of(end), (tmp_path / f"{number}.log").read_text()) == (0, "7\n")


def end_during(read):
    def make():
        Path("begun").touch()
        read()
        Path("ended").touch()
        yield

    ReadAhead(make, 1)
    while not Path("begun").exists():
        time.sleep(0.01)
    ctypes.pythonapi.Py_Exit(0)


def slow():
    time.sleep(1)


def failing():
    def fail():
        raise ConnectionError("no route")

    try:
        read_with_retries(fail, "here")  # would wait for five minutes
    except ConnectionError:
        return


def test_the_end_of_a_process_waits_for_a_read_and_cuts_the_wait_for_the_next_try_short(tmp_path):
    for read in (slow, failing):
        (tmp_path / read.__name__).mkdir()
        log = tmp_path / f"{read.__name__}.log"
        status = status_of(start(end_during, read, log=log, folder=tmp_path / read.__name__))
        assert status == 0, log.read_text()
        assert (tmp_path / read.__name__ / "ended").exists()
