"""Functions and scripts in processes of their own, which may talk to each other through gloo.

They are forked from a process that has imported everything: one that starts from nothing imports for six seconds.
"""

import functools
import multiprocessing
import os
import pickle
import runpy
import signal
import socket
import sys
import time
import warnings
from multiprocessing import forkserver
from pathlib import Path

import pytest
from lightning_utilities.core.rank_zero import rank_zero_only as lightning_rank
from torchmetrics.utilities.prints import rank_zero_only as torchmetrics_rank

TESTS = Path(__file__).parent
# Seconds after which a process that should have ended hangs, however busy the machine is.
PATIENCE = 600


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def environment(rank, num_ranks, port):
    """What `torchrun` and Lightning's own launcher tell a process."""
    world = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": num_ranks}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in (world | meeting).items()}


@functools.cache
def _preloaded():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["conftest"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{TESTS}{os.pathsep}{TESTS.parent}")  # of this tree, whichever one is installed
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def _in_child(function, args, options, log, folder, variables):
    assert "lightning.pytorch" in sys.modules, "nothing was imported before the fork"
    # A shell without job control starts `pytest &` with SIGINT ignored, and that is inherited: Ctrl-C would do nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.update(variables)
    # They look at the environment when they are imported, to know who is to warn.
    torchmetrics_rank.rank = lightning_rank.rank = int(variables.get("LOCAL_RANK", 0))
    function(*args, **options)


def start(function, *args, log, folder=".", variables=(), **options):
    """Starts a function of a module in a process.

    Args:
        log: The file that gets what the process prints.
        folder: Its working directory.
        variables: Environment variables.
    """
    given = (function, args, options, Path(log).absolute(), Path(folder).absolute(), dict(variables))
    process = _preloaded().Process(target=_in_child, args=given)
    process.start()
    return process


def status_of(process):
    """Waits for the end of a process and returns its exit status, which is negative after a signal."""
    process.join(PATIENCE)
    assert process.exitcode is not None, f"process {process.pid} still runs"
    return process.exitcode


def wait_until(happened, or_say=lambda: "it did not happen"):
    """Waits until a function says that something has happened; what `or_say` returns is the message if it does not."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"after {PATIENCE} s: {or_say()}"
        time.sleep(0.02)


def run_script(path, *arguments):
    """Does in this process what `python path arguments` does."""
    sys.argv = [str(path), *map(str, arguments)]
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(str(path), run_name="__main__")


def _found(file, function, args, options):
    warnings.simplefilter("error", UserWarning)
    warnings.filterwarnings("ignore", "You defined a `validation_step` but have no `val_dataloader`")
    found = function(*args, **options)
    file.write_bytes(pickle.dumps(found))


def together(folder, num_ranks, function, *args, **options):
    """Calls a function of a test module in several processes, and returns what each returned."""
    port, processes = free_port(), []
    for rank in range(num_ranks):
        given = (_found, folder / f"found-{rank}", function, args, options)
        world = environment(rank, num_ranks, port)
        processes.append(start(*given, log=folder / f"log-{rank}", folder=folder, variables=world))
    try:
        for rank, process in enumerate(processes):
            assert status_of(process) == 0, (folder / f"log-{rank}").read_text()[-4000:]
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()
    return [pickle.loads((folder / f"found-{rank}").read_bytes()) for rank in range(num_ranks)]
