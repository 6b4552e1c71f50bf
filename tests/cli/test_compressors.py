import gzip
import lzma
import threading

import pytest
from datasets import Dataset

from lit_tbptt.cli.compressors import AFTER_TRAINING, Compressors

TEST = [f"{i * i % 1009} " * (i % 7) + "é" * (i % 3) for i in range(90_001)]
TRAIN = [f"{i * i % 919} " * (i % 5) for i in range(70_003)] + TEST[:3001]


def compressor_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("compressor")]


@pytest.mark.parametrize("train", [None, TRAIN])
def test_sizes_are_those_of_all_documents_compressed_at_once(train):
    text = "".join(TEST).encode()
    assert len(text) > (1 << 20) + 1  # more than is compressed at once
    sizes = {"gzip -9": len(gzip.compress(text, 9)), "xz": len(lzma.compress(text))}
    if train is not None:
        before = "".join(train).encode()
        both, alone = (len(lzma.compress(each, preset=9 | lzma.PRESET_EXTREME)) for each in (before + text, before))
        sizes[AFTER_TRAINING] = both - alone
    made = Compressors(*(each and Dataset.from_dict({"text": each}) for each in (TEST, train)))
    computed = made.bits_per_byte()
    assert computed.keys() == sizes.keys()
    for name, size in sizes.items():
        assert computed[name] == pytest.approx(8 * size / len(text), abs=8 * 64 / len(text))  # the header's size
    assert computed["xz"] == 8 * sizes["xz"] / len(text)
    assert not compressor_threads()


def test_text_repeated_from_training_costs_almost_nothing_after_it():
    noise = "".join(chr(33 + i * i * 7919 % 1009 % 90) for i in range(60_007))
    bits = Compressors(Dataset.from_dict({"text": [noise]}), Dataset.from_dict({"text": [noise]})).bits_per_byte()
    assert bits[AFTER_TRAINING] < bits["xz"] / 2


def test_stopped_compressors_end_their_threads():
    made = Compressors(Dataset.from_dict({"text": TEST}), Dataset.from_dict({"text": TRAIN}))
    made.stop()
    assert not compressor_threads()
