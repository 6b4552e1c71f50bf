import ctypes
import platform
import resource
from pathlib import Path

import pytest
import torch
from processes import start, status_of

from lit_tbptt.cli.process import keep_freed_memory

BLOCKS, MEGABYTES = 5, 20


def count_faults(file):
    """Writes how many pages the system gives for blocks of memory, again and again, and how many are kept of 300 MB."""
    ctypes.CDLL(None).mallopt(-3, 2**16)  # what the variable below does where it is set before the start
    keep_freed_memory()
    counts = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        _ = [torch.ones(MEGABYTES * 2**18) for _ in range(BLOCKS)]
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        del _
    before = resident_pages()
    torch.ones(300 * 2**18)
    Path(file).write_text(f"{min(counts[1:])} {resident_pages() - before}")


def resident_pages():
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library decides for itself")
def test_freed_memory_is_used_again_unless_the_user_has_set_the_allocator(tmp_path):
    measured = {}
    for chosen, variables in {"ours": {}, "the user's": {"MALLOC_MMAP_THRESHOLD_": "65536"}}.items():
        file = tmp_path / chosen
        assert status_of(start(count_faults, file, log=tmp_path / "log", variables=variables)) == 0
        measured[chosen] = [int(count) for count in file.read_text().split()]
    again, kept = measured["ours"]
    assert again < 100
    assert kept * resource.getpagesize() < 30 * 2**20
    again, _ = measured["the user's"]
    assert again > 25_000
