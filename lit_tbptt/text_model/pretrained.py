"""Model folders in the format of the Hugging Face Hub: weights, settings, tokenizer and a model card.

config.json          the network's settings and the tokenizer's name, plain values
model.safetensors    the weights
tokenizer.json       the tokenizer, if it is one of the `tokenizers` library
README.md            the model card
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from lit_tbptt.errors import InputError
from lit_tbptt.files.atomic import replacing

CONFIG, WEIGHTS, TOKENIZER, CARD = "config.json", "model.safetensors", "tokenizer.json", "README.md"
FORMAT = 1
"""Version of config.json; increase it when a key changes its name or meaning."""


def write_folder(
    folder: Path, network: torch.nn.Module, settings: Mapping[str, Any], tokenizer: Mapping[str, Any], card: str
) -> None:
    """Writes the files of a model to a folder, which is created; only files with the same names are replaced.

    Args:
        folder: The folder.
        network: The network whose weights are written.
        settings: The settings it is built from: plain values.
        tokenizer: The result of `Tokenizer.describe`.
        card: The text of README.md.

    Raises:
        InputError: A setting is not a plain value, or a file cannot be written.
    """
    tokenizer = dict(tokenizer)
    library = tokenizer.pop("json", None)
    about = {"format": FORMAT, "library_name": "lit_tbptt", **settings, "tokenizer": tokenizer}
    try:
        config = json.dumps(about, indent=2, ensure_ascii=False)
    except TypeError as error:
        raise InputError(
            f"the core's arguments are {settings['core']}: config.json takes plain values ({error})"
        ) from error
    texts = {CONFIG: config, CARD: card} | ({} if library is None else {TOKENIZER: library})
    try:
        for name, text in texts.items():
            with replacing(folder / name) as beside:
                beside.write_text(text, encoding="utf-8")
        with replacing(folder / WEIGHTS) as beside:
            save_model(network, str(beside), {"format": "pt"})  # it writes tied weights once
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: cannot be written to ({error})") from error


def is_model_folder(folder: Path) -> bool:
    """Tells whether a folder is one that `write_folder` wrote."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings of the network, and the description of the tokenizer.

    Raises:
        InputError: The folder was not written by `write_folder`.
    """
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if settings.get("library_name") != "lit_tbptt" or settings["format"] != FORMAT:
            raise InputError(
                f"{folder / CONFIG}: not of this package, or of another version of the format than {FORMAT}"
            )
        tokenizer = settings.pop("tokenizer")
        if (folder / TOKENIZER).exists():
            tokenizer["json"] = (folder / TOKENIZER).read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: not a folder that save_pretrained or export wrote ({error})") from error
    return settings, tokenizer


def read_weights(folder: Path, network: torch.nn.Module) -> None:
    """Reads the weights into the network.

    Raises:
        InputError: The weights do not fit this network, or the file cannot be read.
    """
    try:
        load_model(network, folder / WEIGHTS)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder / WEIGHTS}: cannot be read, or its weights are not this core's ({error})") from error


def local_folder(name: str | os.PathLike[str], **options: Any) -> Path:
    """Returns the folder itself, or the folder of a download from the Hugging Face Hub.

    Args:
        name: A folder, or a name on the Hub.
        **options: Arguments of `huggingface_hub.snapshot_download`, such as `revision` and `token`.

    Raises:
        InputError: There is neither such a folder nor such a model on the Hub, or the Hub cannot be reached.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download  # it takes half a second to import

    try:
        return Path(snapshot_download(str(name), allow_patterns=[CONFIG, WEIGHTS, TOKENIZER, CARD], **options))
    except Exception as error:  # of many types
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{str(name)!r}: no such folder here, and no such model on the Hugging Face Hub, or the Hub cannot be "
            f"reached ({reason})"
        ) from error


def upload(folder: Path, name: str, private: bool | None, message: str, **options: Any) -> str:
    """Uploads a folder to a repository on the Hub, which is created if necessary, and returns the URL.

    Args:
        folder: A folder written by `write_folder`.
        name: The repository, user/model.
        private: Whether a new repository is private. None: the user's default.
        message: The commit message.
        **options: Arguments of `huggingface_hub.HfApi`, such as `token`.
    """
    from huggingface_hub import HfApi

    api = HfApi(**options)
    repository = api.create_repo(name, private=private, exist_ok=True).repo_id
    return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message))


def model_card(settings: Mapping[str, Any], num_parameters: int, tokenizer: str, metrics: Mapping[str, float]) -> str:
    """Returns the text of a model card."""
    core = settings["core"]
    rows = [f"| {name} | {value:,.6g} |" for name, value in metrics.items()]
    table = ["| metric | value |", "|---|---|", *rows] if rows else ["None are known."]
    lines = [
        "---",
        "library_name: lit_tbptt",
        "pipeline_tag: text-generation",
        "tags: [lit_tbptt, recurrent, truncated-bptt]",
        "---",
        "",
        f"# {core['class_path'].rpartition('.')[2]} language model",
        "",
        "A stateful language model, trained by truncated backpropagation through time with lit_tbptt.",
        "",
        "```python",
        "from lit_tbptt.text_model import TextModel",
        "",
        'model = TextModel.from_pretrained("THIS FOLDER OR ITS NAME ON THE HUB")',
        'print(model.generate("Once", num_tokens=200, temperature=0.8))',
        "```",
        "",
        f"- core: `{core['class_path']}` with `{core['init_args']}`",
        f"- tokenizer: {tokenizer}",
        f"- parameters: {num_parameters:,}",
        "",
        "## Metrics",
        "",
        *table,
        "",
    ]
    return "\n".join(lines)
