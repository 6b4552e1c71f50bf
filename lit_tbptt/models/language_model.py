"""A recurrent language model: embedding, core and output layer."""

from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import dropout

from lit_tbptt.cores import RecurrentCore
from lit_tbptt.cores.checks import check_core, check_probabilities
from lit_tbptt.cores.contract import checked_call
from lit_tbptt.cores.customized import is_customized
from lit_tbptt.cores.masks import check_noise, shared_mask
from lit_tbptt.errors import InputError
from lit_tbptt.models.adaptive_softmax import Adaptive
from lit_tbptt.models.generation import TextGeneration
from lit_tbptt.models.metrics import summed_nats
from lit_tbptt.models.output_layer import can_join, linear_nats
from lit_tbptt.models.penalties import OutputPenalties
from lit_tbptt.tbptt import Task, Window, WindowLoss
from lit_tbptt.tbptt.state import State
from lit_tbptt.tbptt.task import faster_form_of


class RecurrentLM(Task, TextGeneration):
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
        tie_weights: Whether the output layer uses the embedding's matrix (Press & Wolf 2017). If the core's
            `input_size` and `output_size` differ, a linear projection from the one to the other is in front of it.
        head: Creates an output layer other than a linear one.
        vocabulary_dropout: Probability of dropping a token of the vocabulary from the inputs, in training: its
            embedding is zero wherever it occurs in a window and its context (Gal & Ghahramani 2016; Merity et al.
            2018's embedding dropout). A tied output layer is not changed.
        activation_penalty: Factor of the mean square of the core's output after dropout, in training (AR).
        temporal_penalty: Factor of the mean square of the difference between consecutive outputs of a window, before
            dropout, in training (TAR); see `models/penalties.py`.

    Raises:
        InputError: A setting is out of range, or weights are tied although a `head` is given.
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
        vocabulary_dropout: float = 0.0,
        activation_penalty: float = 0.0,
        temporal_penalty: float = 0.0,
    ) -> None:
        super().__init__()
        check_core(core)
        self.penalties = OutputPenalties(activation_penalty, temporal_penalty)
        if dropout_over_time not in ("free", "shared"):
            raise InputError(f"dropout_over_time={dropout_over_time!r}: must be free or shared")
        check_probabilities(
            embedding_dropout=embedding_dropout, output_dropout=output_dropout, vocabulary_dropout=vocabulary_dropout
        )
        self.embedding = nn.Embedding(vocabulary_size, core.input_size)
        self.embedding_dropout = embedding_dropout
        self.vocabulary_dropout = vocabulary_dropout
        self.core = core
        self.output_dropout = output_dropout
        self.dropout_over_time = dropout_over_time
        project = tie_weights and core.input_size != core.output_size
        self.projection = nn.Linear(core.output_size, core.input_size, bias=False) if project else nn.Identity()
        sizes = core.input_size if project else core.output_size, vocabulary_size
        self.head: nn.Module = nn.Linear(*sizes) if head is None else head.make(*sizes)
        if tie_weights:
            if head is not None:
                raise InputError(f"tie_weights=True with head={type(head).__name__}: only a linear layer can be tied")
            self.head.weight = self.embedding.weight
            # The embedding's initialization with unit variance is far too large for an output layer.
            nn.init.normal_(self.head.weight, std=core.input_size**-0.5)
        core.initialize_tokens(self.embedding, self.head)

    # The task

    def initial_state(self, num_lanes: int) -> State:
        output = self.embedding.weight.new_zeros(num_lanes, self.core.output_size)
        return self.penalties.initial_state(self.core.initial_state(num_lanes), output)

    def begin_window(self, num_lanes: int) -> dict[str, Any] | None:
        """Draws the core's noise, and masks scaled to keep the mean: `[token, 1]` and `[lane, 1, feature]`.

        Raises:
            InputError: There are penalties, and a hook or a subclass asks for the loss without the core's outputs.
        """
        self.penalties.check_loss(self, is_customized(self))
        core = self.core.begin_window(num_lanes)
        shared = self.dropout_over_time == "shared" and self.training
        vocabulary = bool(self.vocabulary_dropout) and self.training
        if core is None and not shared and not vocabulary:
            return None
        noise = {"core": core}
        ones = self.embedding.weight.new_ones
        if vocabulary:
            noise["vocabulary"] = shared_mask(ones(self.embedding.num_embeddings, 1), self.vocabulary_dropout)
        if shared:
            noise["embedding"] = dropout(ones(num_lanes, 1, self.core.input_size), self.embedding_dropout)
            noise["output"] = dropout(ones(num_lanes, 1, self.core.output_size), self.output_dropout)
        return noise

    def enter_window(self, state: State) -> State:
        return self.penalties.enter_window(state)

    def predict_window(self, window: Window, state: State) -> tuple[Float[Tensor, "lane time vocabulary"], State]:
        """Returns the logits of the token after each input, and the state after the last one."""
        return self(window.inputs, state)

    def outputs_loss(
        self, outputs: Float[Tensor, "lane time vocabulary"], window: Window
    ) -> tuple[Float[Tensor, ""], Tensor | int]:
        """Returns the summed negative log-likelihood in nats, and the number of scored targets."""
        return summed_nats(outputs, window.targets, window.mask)

    @faster_form_of("predict_window", "outputs_loss", "run_core", "forward", "logits")
    def window_loss(self, window: Window, state: State) -> WindowLoss:
        """Combines the two methods above, in one computation where that is faster; see `output_layer.py`."""
        if is_customized(self):
            return super().window_loss(window, state)
        outputs, state = self.run_core(window.inputs, state)
        return self._loss(outputs, window, state)

    @faster_form_of("predict_window", "outputs_loss", "run_core", "forward", "logits", "window_loss", "advance")
    def run_window(self, window: Window, state: State, num_context: int, far_edge: int) -> tuple[WindowLoss, State]:
        """Runs the core over context and window in one pass, and the output layer over the window."""
        if is_customized(self) or is_customized(self.core):
            return super().run_window(window, state, num_context, far_edge)
        core = self.penalties.core_state(state)
        outputs, *cores = self.core.forward_through(self._embed(window.inputs), core, far_edge)
        far_edge_state, state = (self.penalties.with_core(state, core) for core in cores)
        return self._loss(outputs, window, state, num_context), far_edge_state

    def _loss(
        self, outputs: Float[Tensor, "lane time output"], window: Window, state: State, num_context: int = 0
    ) -> WindowLoss:
        # Applied to the context too, so that masks do not depend on where it is split.
        dropped = self._drop(outputs, "output", self.output_dropout)
        if num_context == window.num_time_steps:
            return WindowLoss(0, 0, state)
        if num_context:
            outputs, dropped, window = outputs[:, num_context:], dropped[:, num_context:], window.split(num_context)[1]
        penalty = None
        if self.penalties and self.training:
            penalty, state = self.penalties(outputs, dropped, window.mask, state)
        return WindowLoss(*self._nats(self.projection(dropped), window), state, penalty)

    def _nats(
        self, features: Float[Tensor, "lane time feature"], window: Window
    ) -> tuple[Float[Tensor, ""], Tensor | int]:
        nats = getattr(self.head, "nats", None)
        if nats is not None and not is_customized(self.head):
            return nats(features, window.targets, window.mask)
        if can_join(self.head):
            return linear_nats(features, self.head, window.targets, window.mask)
        return summed_nats(self.head(features), window.targets, window.mask)

    def advance(self, window: Window, state: State) -> State:
        """Returns the state after the inputs, without running the output layer."""
        return self.run_core(window.inputs, state)[1]

    # The network

    def run_core(
        self, tokens: Int[Tensor, "lane time"], state: State
    ) -> tuple[Float[Tensor, "lane time output"], State]:
        """Runs embedding and core, without the output layer."""
        outputs, core = checked_call(self.core, self._embed(tokens), self.penalties.core_state(state))
        return outputs, self.penalties.with_core(state, core)

    def _embed(self, tokens: Int[Tensor, "lane time"]) -> Float[Tensor, "lane time feature"]:
        noise = None if self.noise is None else self.noise["core"]
        if self.core.noise is not noise:  # setting an attribute of a torch module is slow
            self.core.noise = noise
        if self.core.time_first and type(self.embedding) is nn.Embedding and not is_customized(self.embedding):
            embedded = self.embedding(tokens.t()).transpose(0, 1)
        else:
            embedded = self.embedding(tokens)
        if self.vocabulary_dropout and self.training:
            check_noise(self.noise, f"vocabulary_dropout={self.vocabulary_dropout}")
            embedded = embedded * self.noise["vocabulary"][tokens].to(embedded.dtype)
        return self._drop(embedded, "embedding", self.embedding_dropout)

    def forward(
        self, tokens: Int[Tensor, "lane time"], state: State
    ) -> tuple[Float[Tensor, "lane time vocabulary"], State]:
        """Returns the logits of the token after each of `tokens`, and the state after the last one."""
        outputs, state = self.run_core(tokens, state)
        return self.logits(self._drop(outputs, "output", self.output_dropout)), state

    def logits(self, outputs: Float[Tensor, "... output"]) -> Float[Tensor, "... vocabulary"]:
        """Runs the output layer on outputs of the core."""
        return self.head(self.projection(outputs))

    def _drop(
        self, features: Float[Tensor, "lane time feature"], place: str, probability: float
    ) -> Float[Tensor, "lane time feature"]:
        if self.dropout_over_time == "free" or not self.training:
            return dropout(features, probability, self.training)
        check_noise(self.noise, "dropout_over_time='shared'")
        return features * self.noise[place].to(features.dtype)
