"""Options of the command line in addition to those of the task, its data and Lightning's trainer."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LRSchedulerCallable, OptimizerCallable

from lit_tbptt.cli.settings import class_default
from lit_tbptt.errors import InputError
from lit_tbptt.optim import WarmupCosineLR
from lit_tbptt.training.callbacks import RunCheckpoint

# Options of the trainer that manual optimization does not support, and what to use instead.
_REFUSED = {
    "gradient_clip_val": "set model.clip_norm",
    "gradient_clip_algorithm": "set model.clip_norm, which clips by norm",
    "accumulate_grad_batches": "use more lanes (data.num_lanes) or longer windows (model.k1)",
}

# Instead of Lightning's descriptions, of options that are used otherwise here.
_DESCRIPTIONS = {
    "config": "A YAML file of settings; the command line goes before it.",
    "seed_everything": "Seed of all random numbers; true: a random one.",
    "ckpt_path": "The checkpoint to continue or to evaluate: last, best, a path, or a run's folder.",
}


def describe(parser: LightningArgumentParser) -> None:
    """Describes the options that are Lightning's and used otherwise here."""
    for action in parser._actions:
        action.help = _DESCRIPTIONS.get(action.dest, action.help)


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options of a run, and links related ones."""
    parser.add_argument(
        "--run_name",
        type=str | None,
        help="Name of the run. Left out: a new version_<n>; for --ckpt_path last and best, the run that was written "
        "to last. Its folder is <runs_dir>/<config name>/<run_name>.",
    )
    parser.add_argument(
        "--runs_dir",
        type=str | None,
        help="The folder of all runs. Left out: runs, in trainer.default_root_dir if it is given.",
    )
    parser.add_argument(
        "--init_from",
        type=str | None,
        help="Start a new run from a checkpoint's weights alone: last, best, or a path.",
    )
    parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
    known = {action.dest for action in parser._actions}
    if "model.optimizer" in known:
        parser.add_argument("--optimizer", type=OptimizerCallable, help="Optimizer: a class of torch.optim, or a path.")
        parser.set_defaults({"optimizer": class_default("torch.optim.AdamW")})
        parser.link_arguments("optimizer", "model.optimizer")
    if "model.lr_scheduler" in known:
        parser.add_argument(
            "--lr_scheduler",
            type=LRSchedulerCallable | None,
            help=f"Schedule: {WarmupCosineLR.__name__}, a class of torch.optim.lr_scheduler, or a path.",
        )
        parser.link_arguments("lr_scheduler", "model.lr_scheduler")
    if {"model.k1", "data.k1"} <= known:
        parser.link_arguments("model.k1", "data.k1")
    # Lightning's many options come after ours in the help.
    trainers = [group for group in parser._action_groups if "trainer" in str(group.title).lower()]
    parser._action_groups = [group for group in parser._action_groups if group not in trainers] + trainers


def check_trainer_options(trainer: Mapping[str, Any]) -> None:
    """Raises InputError for options of the trainer that manual optimization cannot take, or that contradict others."""
    for name, instead in _REFUSED.items():
        if trainer[name] not in (None, 1 if name == "accumulate_grad_batches" else None):
            raise InputError(f"trainer.{name}={trainer[name]}: manual optimization cannot take it; {instead}")
    for unit in ("steps", "epochs"):
        least, most = trainer[f"min_{unit}"], trainer[f"max_{unit}"]
        if least is not None and most is not None and 0 <= most < least:
            raise InputError(f"trainer.min_{unit}={least} with trainer.max_{unit}={most}: must not be above it")
    time = trainer["max_time"]
    if isinstance(time, str) and not re.fullmatch(r"\d+(:\d\d){3}", time.strip()):
        raise InputError(f"trainer.max_time={time!r}: must be days:hours:minutes:seconds, such as 00:01:30:00")


@contextmanager
def trainer_option_named(trainer: Mapping[str, Any]) -> Iterator[None]:
    """Names the option that Lightning's trainer finds to be of the wrong type.

    Raises:
        InputError: There is one.
    """
    try:
        yield
    except TypeError as error:
        named = next((name for name in re.findall(r"`(\w+)`", str(error)) if name in trainer), None)
        raise InputError(f"trainer{'' if named is None else f'.{named}={trainer[named]}'}: {error}") from error
