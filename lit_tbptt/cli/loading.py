"""The language model that a command works with: which checkpoint, and on which device."""

import torch

from lit_tbptt.cores import RecurrentCore
from lit_tbptt.errors import InputError
from lit_tbptt.files.run_folder import find_checkpoint, runs_of
from lit_tbptt.files.schema import Checkpoint
from lit_tbptt.text_model import TextModel


def open_model(
    ckpt_path: str,
    core: type[RecurrentCore] | None,
    config: str | None,
    run_name: str | None,
    runs_dir: str,
    device: str = "cpu",
) -> tuple[TextModel, Checkpoint]:
    """Finds a checkpoint and makes its model, on a device; see the options of `generate`.

    Raises:
        InputError: There is no such checkpoint or device.
    """
    place = _device(device)
    _, checkpoint = find_checkpoint(ckpt_path, runs_of(config, runs_dir), run_name)
    model = TextModel.from_checkpoint(checkpoint, core)
    model.network.to(place)
    return model, checkpoint


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except Exception as error:  # of many types, by kind of device
        reason = str(error).splitlines()[0]
        raise InputError(f"device={name!r}: cannot be used here ({reason}); give cpu, or auto") from error
