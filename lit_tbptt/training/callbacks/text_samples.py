"""TextSamples: generates samples during training."""

from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from lit_tbptt.errors import InputError
from lit_tbptt.training.loggers import TokensTensorBoardLogger


class TextSamples(Callback):
    """Writes continuations of prompts to the terminal and to TensorBoard.

    Process 0 generates them, every time with the same random numbers. Training is not affected: a run with samples
    equals a run without them bit for bit.

    Args:
        every_n_steps: Optimizer steps between two sets of samples.
        prompts: The prompts to continue. An empty one is the start of a document.
        num_tokens: Number of tokens to generate per prompt.
        temperature: Divides the logits before sampling; 0 takes the most likely token.
        top_k: Sample only from the k most likely tokens. Left out: from all.
        seed: The same seed gives the same text.

    Raises:
        InputError: `every_n_steps` is below 1.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        prompts: Sequence[str] = ("",),
        num_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        seed: int = 1,
    ) -> None:
        if every_n_steps < 1:
            raise InputError(f"every_n_steps={every_n_steps}: must be 1 or more")
        self.every_n_steps = every_n_steps
        self.prompts = list(prompts)
        self.num_tokens = num_tokens
        self.temperature = temperature
        self.top_k = top_k
        self.seed = seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "generate"):
            raise InputError(
                f"trainer.callbacks=TextSamples with a {type(pl_module).__name__}: it has no generate(prompts, "
                "num_tokens, temperature, top_k, seed)"
            )

    def on_step_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes samples when they are due."""
        step = trainer.global_step
        if step % self.every_n_steps or not trainer.is_global_zero:
            return
        texts = pl_module.generate(self.prompts, self.num_tokens, self.temperature, self.top_k, self.seed)
        for number, (prompt, text) in enumerate(zip(self.prompts, texts, strict=True)):
            rank_zero_info(f"step {step}, sample {number}:\n{prompt}{text}")
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger) and not isinstance(logger, TokensTensorBoardLogger):
                    logger.experiment.add_text(f"sample/{number}", prompt + text, step)
