"""The options of the command line beside those of the task, its data and Lightning's trainer."""

from lightning.pytorch.cli import LightningArgumentParser, LRSchedulerCallable, OptimizerCallable

from lit_tbptt.training.callbacks import RunCheckpoint


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options of a run, and links those that belong together."""
    parser.add_argument(
        "--run_name",
        type=str | None,
        help="Name of the run's folder, runs/<config name>/<run_name>, and of the run that --ckpt_path last and best "
        "mean. Left out: a new version_<n>, and the run that was written to last.",
    )
    parser.add_argument(
        "--init_from",
        type=str | None,
        help="For fit: start a new run from the weights of this checkpoint, and nothing else of it.",
    )
    parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
    known = {action.dest for action in parser._actions}
    if "model.optimizer" in known:
        parser.add_argument("--optimizer", type=OptimizerCallable, help="Optimizer: a class of torch.optim, or a path.")
        parser.set_defaults({"optimizer": {"class_path": "torch.optim.AdamW"}})
        parser.link_arguments("optimizer", "model.optimizer")
    if "model.lr_scheduler" in known:
        parser.add_argument(
            "--lr_scheduler",
            type=LRSchedulerCallable | None,
            help="Schedule: WarmupCosineLR, a class of torch.optim.lr_scheduler, or a path.",
        )
        parser.link_arguments("lr_scheduler", "model.lr_scheduler")
    if {"model.k1", "data.k1"} <= known:
        parser.link_arguments("model.k1", "data.k1")
