"""The command `export`: a checkpoint's model as a folder that others can load. It needs no trainer."""

from lit_tbptt.cli.loading import checkpoint_of_command
from lit_tbptt.cores import RecurrentCore
from lit_tbptt.files.schema import run_state
from lit_tbptt.text_model import TextModel


def export(
    folder: str,
    /,
    ckpt_path: str,
    core: type[RecurrentCore] | None = None,
    config: str | None = None,
    run_name: str | None = None,
    runs_dir: str = "runs",
) -> None:
    """Export a checkpoint's model to a folder: model.safetensors, config.json, tokenizer, and a model card.

    Args:
        folder: The folder to write; existing files with these names are replaced.
        ckpt_path: The checkpoint: a path, last, or best.
        core: The class of the checkpoint's core, if it is your own; it is never imported from the checkpoint alone.
        config: The config file of the run that last and best refer to.
        run_name: The name of that run. Left out: the one that was written to most recently.
        runs_dir: The folder of all runs.
    """
    _, checkpoint = checkpoint_of_command(ckpt_path, config, run_name, runs_dir)
    model = TextModel.from_checkpoint(checkpoint, core)
    metrics = {name: float(value) for name, value in run_state(checkpoint)["metrics"].items()}
    model.save_pretrained(folder, {"optimizer steps": checkpoint["global_step"], **metrics})
    print(f"written: {folder}\nfrom Python: TextModel.from_pretrained({folder!r})")
