"""Runs functions of the tests in several real processes that talk to each other through gloo."""

import inspect
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
PROGRAM = """
import pickle, sys, warnings
warnings.simplefilter("error", UserWarning)
warnings.filterwarnings("ignore", "You defined a `validation_step` but have no `val_dataloader`")
sys.path[:0] = sys.argv[1:3]
import conftest
import importlib
with open(sys.argv[3], "rb") as file:
    module, name, args, options = pickle.load(file)
found = getattr(importlib.import_module(module), name)(*args, **options)
with open(sys.argv[4], "wb") as file:
    pickle.dump(found, file)
"""


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def environment(rank, num_ranks, port):
    """What `torchrun` and Lightning's own launcher tell a process."""
    world = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": num_ranks}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    return {**os.environ, **{name: str(value) for name, value in (world | meeting).items()}}


def together(folder, num_ranks, function, *args, **options):
    """Calls a function of a test module in so many processes, and returns what each returned."""
    port, processes = free_port(), []
    place = Path(inspect.getfile(function)).parent
    call = folder / "call"
    call.write_bytes(pickle.dumps((function.__module__, function.__name__, args, options)))
    for rank in range(num_ranks):
        command = [sys.executable, "-c", PROGRAM, TESTS, place, call, folder / f"found-{rank}"]
        with open(folder / f"log-{rank}", "w") as log:
            processes.append(
                subprocess.Popen(command, stdout=log, stderr=log, env=environment(rank, num_ranks, port), cwd=folder)
            )
    try:
        for rank, process in enumerate(processes):
            assert process.wait(timeout=120) == 0, (folder / f"log-{rank}").read_text()[-4000:]
    finally:
        for process in processes:
            process.kill()
    return [pickle.loads((folder / f"found-{rank}").read_bytes()) for rank in range(num_ranks)]
