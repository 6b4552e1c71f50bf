"""The thread that reads ahead ends when it is no longer needed."""

import subprocess
import sys
import threading

from letters import UNEVEN, streamed
from sources import files


def test_a_reader_ends_with_its_iterator():
    def running():
        return [thread for thread in threading.enumerate() if thread.name == "lit_tbptt reader"]

    before = running()
    batches = iter(streamed(UNEVEN, 2, 3, repeat=True))
    next(batches)
    assert len(running()) == len(before) + 1
    batches.close()
    for thread in running():
        thread.join(5)
    assert running() == before


def test_a_process_ends_while_its_stream_is_read(tmp_path):
    """A thread that is stopped inside of a library would abort the process."""
    files("parquet")(tmp_path)
    program = f"""
from lit_tbptt import StreamedLanes
from lit_tbptt.data import document_stream, load_documents
from lit_tbptt.data.text.tokenizers import ByteTokenizer
stream = document_stream(load_documents({str(tmp_path)!r}, streaming=True)["train"], "train")
batches = iter(StreamedLanes(stream, ByteTokenizer(), 4, 8, 4, repeat=True, num_readers=2))
print(len([next(batches) for _ in range(7)]))
"""
    for _ in range(3):
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stdout) == (0, "7\n"), ended.stderr
