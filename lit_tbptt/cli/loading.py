"""The language model that a command works with: which checkpoint or folder, and on which device."""

import sys
from pathlib import Path

import torch

from lit_tbptt.cores import RecurrentCore
from lit_tbptt.errors import InputError
from lit_tbptt.files.run_folder import find_checkpoint, searched_runs
from lit_tbptt.files.schema import Checkpoint
from lit_tbptt.text_model import TextModel
from lit_tbptt.text_model.pretrained import is_model_folder


def open_model(
    ckpt_path: str,
    core: type[RecurrentCore] | None,
    config: str | None,
    run_name: str | None,
    runs_dir: str,
    device: str,
) -> TextModel:
    """Finds a checkpoint, or the folder of an exported model, and makes the model, on a device.

    The arguments are options of `generate`.

    Raises:
        InputError: There is no such checkpoint or device.
    """
    place = _device(device)
    if is_model_folder(Path(ckpt_path)):
        model = TextModel.from_pretrained(ckpt_path, core)
    else:
        _, checkpoint = checkpoint_of_command(ckpt_path, config, run_name, runs_dir)
        model = TextModel.from_checkpoint(checkpoint, core)
    model.network.to(place)
    return model


def checkpoint_of_command(
    ckpt_path: str, config: str | None, run_name: str | None, runs_dir: str
) -> tuple[Path, Checkpoint]:
    """Finds a checkpoint, and says which one on the standard error stream if it was not named by its path.

    The arguments are options of `generate`.

    Raises:
        InputError: There is no such checkpoint.
    """
    path, checkpoint = find_checkpoint(ckpt_path, searched_runs(config, runs_dir), run_name)
    if Path(ckpt_path) != path:
        print(f"checkpoint: {path}, optimizer step {checkpoint['global_step']}", file=sys.stderr)
    return path, checkpoint


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except Exception as error:  # of many types, by kind of device
        reason = str(error).splitlines()[0]
        raise InputError(f"device={name!r}: cannot be used here ({reason}); give cpu, or auto") from error
