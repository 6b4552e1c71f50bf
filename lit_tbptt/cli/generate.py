"""The command `generate`: continues prompts from a checkpoint. It needs no trainer."""

import torch

from lit_tbptt.cores import RecurrentCore
from lit_tbptt.files.run_folder import find_checkpoint, runs_of
from lit_tbptt.text_model import TextModel


def generate(
    ckpt_path: str,
    prompt: list[str] | str = "",
    num_tokens: int = 400,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 1,
    core: type[RecurrentCore] | None = None,
    config: str | None = None,
    run_name: str | None = None,
    runs_dir: str = "runs",
    device: str = "auto",
) -> None:
    """Continue prompts from a checkpoint.

    Args:
        ckpt_path: The checkpoint: a path, last, or best. Nothing else is needed.
        prompt: What to continue: one text, or a list of them, ["a", "b"].
        num_tokens: Tokens to add.
        temperature: Divides the logits before sampling; 0 takes the likeliest token each time.
        top_k: Sample among the k likeliest tokens only. Left out: among all.
        seed: The same seed gives the same text.
        core: The class of the checkpoint's core where it is one of your own, which is not imported because a file says
            so.
        config: The configuration file of the run that last and best are of.
        run_name: The name of that run. Left out: the one that was written to last.
        runs_dir: The folder of all runs.
        device: Where to compute, such as cpu or cuda. auto: a GPU if there is one.
    """
    _, checkpoint = find_checkpoint(ckpt_path, runs_of(config, runs_dir), run_name)
    model = TextModel.from_checkpoint(checkpoint, core)
    model.network.to(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    for given, text in zip(prompts, model.generate(prompts, num_tokens, temperature, top_k, seed), strict=True):
        print(given + text)
