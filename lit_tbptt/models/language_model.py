"""A recurrent language model: embedding, core, output layer, and generation."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import dropout

from lit_tbptt.cores import RecurrentCore
from lit_tbptt.cores.base import check_core
from lit_tbptt.errors import InputError
from lit_tbptt.models.adaptive_softmax import Adaptive
from lit_tbptt.models.metrics import summed_nats
from lit_tbptt.models.output_layer import can_join, is_customized, linear_nats
from lit_tbptt.models.sampling import Sampling
from lit_tbptt.tbptt import Task, Window, WindowLoss
from lit_tbptt.tbptt.state import State
from lit_tbptt.tbptt.task import faster_form_of

_LARGEST_SEED = 2**63 - 1


class RecurrentLM(Task, nn.Module):
    """Predicts the next token from the previous tokens, which the state of the core summarizes.

    It is a task, so `Truncation` can run it directly on windows of token ids. The loss is the summed negative
    log-likelihood.

    Args:
        vocabulary_size: Number of tokens in the vocabulary.
        core: The recurrent module. Its `input_size` is the width of the embedding.
        embedding_dropout: Dropout probability of the embedded input, in training.
        output_dropout: Dropout probability of the core's output, in training.
        dropout_over_time: Whether the two dropouts draw a mask for every time step (`free`), or one for all time
            steps of a window and its context (`shared`; Gal & Ghahramani 2016, Merity et al. 2018's locked dropout).
        tie_weights: Whether the output layer uses the embedding's matrix (Press & Wolf 2017).
        head: Creates an output layer other than a linear one.

    Raises:
        InputError: A setting is out of range, or weights are tied although the core's input and output sizes differ or
            a `head` is given.
    """

    def __init__(
        self,
        vocabulary_size: int,
        core: RecurrentCore,
        embedding_dropout: float = 0.0,
        output_dropout: float = 0.0,
        dropout_over_time: Literal["free", "shared"] = "free",
        tie_weights: bool = False,
        head: Adaptive | None = None,
    ) -> None:
        super().__init__()
        check_core(core)
        if dropout_over_time not in ("free", "shared"):
            raise InputError(f"dropout_over_time={dropout_over_time!r}: must be free or shared")
        for name, value in (("embedding_dropout", embedding_dropout), ("output_dropout", output_dropout)):
            if not 0 <= value < 1:
                raise InputError(f"{name}={value}: must be at least 0 and below 1")
        self.embedding = nn.Embedding(vocabulary_size, core.input_size)
        self.embedding_dropout = embedding_dropout
        self.core = core
        self.output_dropout = output_dropout
        self.dropout_over_time = dropout_over_time
        sizes = core.output_size, vocabulary_size
        self.head: nn.Module = nn.Linear(*sizes) if head is None else head.make(*sizes)
        if tie_weights:
            if head is not None:
                raise InputError(f"tie_weights=True with head={type(head).__name__}: only a linear layer can be tied")
            if core.input_size != core.output_size:
                raise InputError(
                    f"tie_weights=True with core.input_size={core.input_size} and "
                    f"core.output_size={core.output_size}: tied weights need the two to be equal"
                )
            self.head.weight = self.embedding.weight
            # The embedding's initialization with unit variance is far too large for an output layer.
            nn.init.normal_(self.head.weight, std=core.output_size**-0.5)
        core.initialize_tokens(self.embedding, self.head)

    # The task

    def initial_state(self, num_lanes: int) -> State:
        return self.core.initial_state(num_lanes)

    def begin_window(self, num_lanes: int) -> dict[str, Any] | None:
        """Draws the core's noise and the masks of shared dropout, `[lane, 1, feature]`, scaled to keep the mean."""
        core = self.core.begin_window(num_lanes)
        shared = self.dropout_over_time == "shared" and self.training
        if core is None and not shared:
            return None
        noise = {"core": core}
        if shared:
            ones = self.embedding.weight.new_ones
            noise["embedding"] = dropout(ones(num_lanes, 1, self.core.input_size), self.embedding_dropout)
            noise["output"] = dropout(ones(num_lanes, 1, self.core.output_size), self.output_dropout)
        return noise

    def predict_window(self, window: Window, state: State) -> tuple[Float[Tensor, "lane time vocabulary"], State]:
        """Returns the logits of the token after each input, and the state after the last one."""
        return self(window.inputs, state)

    def outputs_loss(
        self, outputs: Float[Tensor, "lane time vocabulary"], window: Window
    ) -> tuple[Float[Tensor, ""], Tensor | int]:
        """Returns the summed negative log-likelihood in nats, and the number of scored targets."""
        return summed_nats(outputs, window.targets, window.mask)

    @faster_form_of("predict_window", "outputs_loss", "run_core", "forward")
    def window_loss(self, window: Window, state: State) -> WindowLoss:
        """Combines the two methods above, in one computation where that is faster; see `output_layer.py`."""
        if is_customized(self):
            return super().window_loss(window, state)
        outputs, state = self.run_core(window.inputs, state)
        return WindowLoss(*self._nats(outputs, window), state)

    @faster_form_of("predict_window", "outputs_loss", "run_core", "forward", "window_loss", "advance")
    def run_window(self, window: Window, state: State, num_context: int, far_edge: int) -> tuple[WindowLoss, State]:
        """Runs the core over context and window in one pass, and the output layer over the window."""
        if is_customized(self) or is_customized(self.core):
            return super().run_window(window, state, num_context, far_edge)
        outputs, far_edge_state, state = self.core.forward_through(self._embed(window.inputs), state, far_edge)
        return WindowLoss(*self._nats(outputs, window, num_context), state), far_edge_state

    def _nats(
        self, outputs: Float[Tensor, "lane time output"], window: Window, num_context: int = 0
    ) -> tuple[Float[Tensor, ""] | int, Tensor | int]:
        # Applied to the context too, so that masks do not depend on where it is split.
        outputs = self._drop(outputs, "output", self.output_dropout)
        if num_context == window.num_time_steps:
            return 0, 0
        if num_context:
            outputs, window = outputs[:, num_context:], window.split(num_context)[1]
        nats = getattr(self.head, "nats", None)
        if nats is not None and not is_customized(self.head):
            return nats(outputs, window.targets, window.mask)
        if can_join(self.head):
            return linear_nats(outputs, self.head, window.targets, window.mask)
        return summed_nats(self.head(outputs), window.targets, window.mask)

    def advance(self, window: Window, state: State) -> State:
        """Returns the state after the inputs, without running the output layer."""
        return self.run_core(window.inputs, state)[1]

    # The network

    def run_core(
        self, tokens: Int[Tensor, "lane time"], state: State
    ) -> tuple[Float[Tensor, "lane time output"], State]:
        """Runs embedding and core, without the output layer."""
        return self.core(self._embed(tokens), state)

    def _embed(self, tokens: Int[Tensor, "lane time"]) -> Float[Tensor, "lane time feature"]:
        noise = None if self.noise is None else self.noise["core"]
        if self.core.noise is not noise:  # setting an attribute of a torch module is slow
            self.core.noise = noise
        if self.core.time_first and type(self.embedding) is nn.Embedding and not is_customized(self.embedding):
            embedded = self.embedding(tokens.t()).transpose(0, 1)
        else:
            embedded = self.embedding(tokens)
        return self._drop(embedded, "embedding", self.embedding_dropout)

    def forward(
        self, tokens: Int[Tensor, "lane time"], state: State
    ) -> tuple[Float[Tensor, "lane time vocabulary"], State]:
        """Returns the logits of the token after each of `tokens`, and the state after the last one."""
        outputs, state = self.run_core(tokens, state)
        return self.head(self._drop(outputs, "output", self.output_dropout)), state

    def _drop(
        self, features: Float[Tensor, "lane time feature"], place: str, probability: float
    ) -> Float[Tensor, "lane time feature"]:
        if self.dropout_over_time == "free" or not self.training:
            return dropout(features, probability, self.training)
        if self.noise is None:
            raise InputError(
                "dropout_over_time='shared': the masks of a window are drawn by begin_window(num_lanes); set `noise` "
                "to what it returns, as Truncation does, or call eval()"
            )
        return features * self.noise[place].to(features.dtype)

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
                    texts[lanes, place] = sampling(self.head(outputs[lanes, -1]), draws[lanes, place, None])
                inputs = texts[:, place : place + 1].clamp(max=self.embedding.num_embeddings - 1)
                yield place, new
        finally:
            self.train(was_training)

    def _checked(self, tokens: Tensor) -> list:
        if tokens.numel() and tokens.max() >= self.embedding.num_embeddings:  # Sampling returns this for nan
            raise InputError("the logits are nan or inf: the training has diverged; take an earlier checkpoint")
        return tokens.tolist()
