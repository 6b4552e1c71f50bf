"""The thread that reads ahead ends when it is no longer needed."""

import ctypes
import io
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
from letters import UNEVEN, streamed
from processes import PATIENCE, start, status_of, wait_until
from sources import files

from lit_tbptt import SequenceLanesDataModule, StreamedLanes
from lit_tbptt.data import document_stream, load_documents
from lit_tbptt.data.process_end import wait_for_arrow
from lit_tbptt.data.read_ahead import ReadAhead
from lit_tbptt.data.text.network import read_with_retries
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


class Slow:
    """A dataset whose items must not be read by two threads at once."""

    def __init__(self):
        self.reading, self.most = set(), 0

    def __len__(self):
        return 9

    def __getitem__(self, number):
        self.reading.add(threading.get_ident())
        self.most = max(self.most, len(self.reading))
        time.sleep(0.005)
        self.reading.discard(threading.get_ident())
        return {"x": np.full(5, number, np.float32)}


def test_a_dataset_is_read_by_one_thread_at_a_time():
    dataset = Slow()
    module = SequenceLanesDataModule(dataset, inputs="x", shift=1, num_lanes=2, k1=3, normalize=True)
    module.setup("fit")
    for _ in range(2):
        next(iter(module.train_dataloader()))
    assert dataset.most == 1


def read_and_end(folder):
    stream = document_stream(load_documents(str(folder), streaming=True)["train"], "train")
    batches = iter(StreamedLanes(stream, ByteTokenizer(), 4, 8, 4, repeat=True, num_readers=2))
    print(len([next(batches) for _ in range(7)]), flush=True)
    ctypes.pythonapi.Py_Exit(0)  # the interpreter ends as after a program's last line


@pytest.mark.slow
def test_a_process_ends_while_its_stream_is_read(tmp_path):
    """A thread that is stopped inside a library would abort the process."""
    folder = tmp_path / "files"
    folder.mkdir()
    files("parquet")(folder)
    ends = [start(read_and_end, folder, log=tmp_path / f"{number}.log") for number in range(3)]
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


@pytest.mark.slow
def test_the_end_of_a_process_waits_for_a_read_and_cuts_the_wait_for_the_next_try_short(tmp_path):
    for read in (slow, failing):
        (tmp_path / read.__name__).mkdir()
        log = tmp_path / f"{read.__name__}.log"
        status = status_of(start(end_during, read, log=log, folder=tmp_path / read.__name__))
        assert status == 0, log.read_text()
        assert (tmp_path / read.__name__ / "ended").exists()


class HeldFile(io.BytesIO):
    """Reads take a while; those that begin once `holding` is true last until they are let go."""

    def __init__(self, content):
        super().__init__(content)
        self.holding, self.held, self.let_go = False, 0, threading.Event()

    def read(self, size=-1):
        if self.holding:
            self.held += 1
            self.let_go.wait()
            self.held -= 1
        else:
            time.sleep(0.02)
        return super().read(size)


def leave_a_scan():
    pa.set_cpu_count(2)
    content = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"text": ["a" * 150] * 1000}), content, row_group_size=1)
    file = HeldFile(content.getvalue())
    scan = pyarrow.dataset.ParquetFileFormat().make_fragment(pa.PythonFile(file, "r"))
    options = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
    batches = scan.to_batches(batch_size=1, fragment_scan_options=options)
    next(batches)
    file.holding = True  # pyarrow reads on, in a thread of its own; all of it would take 20 seconds
    wait_until(lambda: file.held)
    threading.Timer(0.3, file.let_go.set).start()
    del scan, batches
    wait_for_arrow()
    assert file.held == 0
    assert sys.getrefcount(file) == 2  # the name and the argument: pyarrow holds it no more


@pytest.mark.slow
def test_the_end_of_a_process_waits_for_what_pyarrow_reads_by_itself(tmp_path):
    log = tmp_path / "log"
    status = status_of(start(leave_a_scan, log=log))
    assert status == 0, log.read_text()
