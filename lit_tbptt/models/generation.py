"""Generation of text by a language model, one token after another."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_tbptt.errors import InputError
from lit_tbptt.models.sampling import Sampling
from lit_tbptt.tbptt.state import State

_LARGEST_SEED = 2**63 - 1


class TextGeneration(nn.Module):
    """The part of a language model that generates text, with the state carried from token to token.

    Attributes:
        embedding: Its number of rows is the size of the vocabulary.
        logits: Maps the outputs of `run_core` to logits.
        initial_state: Returns the state of a number of lanes.
        run_core: Maps tokens and a state to outputs and the next state.
    """

    embedding: nn.Embedding
    logits: Callable[[Tensor], Tensor]
    initial_state: Callable[[int], State]
    run_core: Callable[[Tensor, State], tuple[Tensor, State]]

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        num_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
        top_p: float | None = None,
    ) -> list[list[int]]:
        """Continues every prompt by `num_tokens` tokens, at a cost per token that does not grow.

        The text of a prompt depends on `seed`, the model and the prompt's index, not on the other prompts.

        Args:
            prompts: Token ids, at least one for each prompt.
            num_tokens: Number of tokens to generate.
            temperature: Divides the logits before sampling; 0 takes the most likely token.
            top_k: Sample only from the k most likely tokens. None: from all.
            seed: Prompt i uses a generator seeded with `seed + i`.
            top_p: Sample only from the smallest set of most likely tokens whose probabilities sum to p or more. None:
                from all.

        Returns:
            The new tokens of each prompt, without the prompt.

        Raises:
            InputError: A prompt is missing or empty, an option is out of range, or logits are nan or inf.
        """
        sampling = Sampling(temperature, top_k, top_p)
        texts, draws = self._lay_out(prompts, num_tokens, seed)
        for _ in self._steps(texts, draws, prompts, num_tokens, sampling):
            pass  # tokens are read only at the end, because reading from a GPU makes the host wait
        rows = self._checked(texts)
        return [row[len(prompt) : len(prompt) + num_tokens] for row, prompt in zip(rows, prompts, strict=True)]

    @torch.inference_mode()
    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        num_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
        top_p: float | None = None,
    ) -> Iterator[list[int | None]]:
        """Yields the tokens of `generate`, with the same arguments, as they are sampled.

        The model is in eval mode until the iterator ends or is closed.

        Yields:
            The next token of each prompt; None while longer prompts are still being read, or once it is complete.
        """
        sampling = Sampling(temperature, top_k, top_p)
        texts, draws = self._lay_out(prompts, num_tokens, seed)
        for place, new in self._steps(texts, draws, prompts, num_tokens, sampling):
            tokens = self._checked(texts[:, place])
            yield [token if is_new else None for token, is_new in zip(tokens, new, strict=True)]

    def _lay_out(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, seed: int
    ) -> tuple[Int[Tensor, "lane time"], Float[Tensor, "lane time"]]:
        """Returns the prompts, padded for the new tokens, and the random number that selects each new token."""
        if not prompts or not all(prompts):
            raise InputError("prompts: at least one, each of at least one token, is needed")
        if num_tokens < 0:
            raise InputError(f"num_tokens={num_tokens}: must be 0 or more")
        if not 0 <= seed <= _LARGEST_SEED:
            raise InputError(f"seed={seed}: must be from 0 to {_LARGEST_SEED}")
        device = self.embedding.weight.device
        size = len(prompts), max(map(len, prompts)) + num_tokens
        texts = torch.zeros(size, dtype=torch.long, device=device)
        draws = torch.ones(size, dtype=torch.double, device=device)
        for lane, prompt in enumerate(prompts):
            start, end = len(prompt), len(prompt) + num_tokens
            texts[lane, :start] = torch.tensor(prompt)
            generator = torch.Generator(device).manual_seed(seed + lane)
            draws[lane, start:end] = 1 - torch.rand(num_tokens, dtype=torch.double, device=device, generator=generator)
        return texts, draws

    def _steps(
        self, texts: Tensor, draws: Tensor, prompts: Sequence[Sequence[int]], num_tokens: int, sampling: Sampling
    ) -> Iterator[tuple[int, list[bool]]]:
        """Writes the new tokens into `texts`; yields each time index and which lanes have a new token there.

        The lanes advance together: first through the part that all prompts have; then, at each step, a lane reads its
        next prompt token or samples a new one.
        """
        starts = [len(prompt) for prompt in prompts]
        was_training = self.training
        self.eval()
        try:
            inputs, state = texts[:, : min(starts)], self.initial_state(len(prompts))
            for place in range(min(starts), texts.shape[1]):
                outputs, state = self.run_core(inputs, state)
                new = [start <= place < start + num_tokens for start in starts]
                if any(new):
                    lanes = slice(None) if all(new) else torch.tensor(new, device=texts.device)
                    texts[lanes, place] = sampling(self.logits(outputs[lanes, -1]), draws[lanes, place, None])
                inputs = texts[:, place : place + 1].clamp(max=self.embedding.num_embeddings - 1)
                yield place, new
        finally:
            self.train(was_training)

    def _checked(self, tokens: Tensor) -> list:
        if tokens.numel() and tokens.max() >= self.embedding.num_embeddings:  # Sampling returns this for nan
            raise InputError("the logits are nan or inf: the training has diverged; take an earlier checkpoint")
        return tokens.tolist()
