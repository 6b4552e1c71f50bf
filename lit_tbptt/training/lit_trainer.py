"""Lightning's trainer, with one more thing to run."""

from lightning.pytorch import Trainer

from lit_tbptt.files.checkpoint import read_checkpoint
from lit_tbptt.training.language_model import LitLanguageModel


class GeneratingTrainer(Trainer):
    """Lightning's trainer, with one more thing to run."""

    def generate(
        self,
        model: LitLanguageModel,
        ckpt_path: str,
        prompt: list[str] | str = "",
        num_tokens: int = 400,
        temperature: float = 0.8,
        top_k: int | None = None,
        seed: int = 1,
    ) -> list[str]:
        """Continue prompts from a checkpoint.

        Args:
            model: The model.
            ckpt_path: The checkpoint: a path, last, or best. Nothing else is needed.
            prompt: What to continue: one text, or a list of them, ["a", "b"].
            num_tokens: Tokens to add.
            temperature: Divides the logits before sampling; 0 takes the likeliest token each time.
            top_k: Sample among the k likeliest tokens only. Left out: among all.
            seed: The same seed gives the same text.
        """
        checkpoint = read_checkpoint(ckpt_path)
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        model.to(self.strategy.root_device)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        generated = model.generate(prompts, num_tokens, temperature, top_k, seed)
        for given, text in zip(prompts, generated, strict=True):
            print(given + text)
        return generated
