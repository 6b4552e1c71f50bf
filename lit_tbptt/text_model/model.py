"""TextModel: a language model with its tokenizer. It does not import Lightning, so it starts faster."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar

import numpy as np
import torch

from lit_tbptt.cores import RecurrentCore
from lit_tbptt.data.text.decoding import IncrementalDecoder, StopText
from lit_tbptt.data.text.tokenizer_choice import from_description
from lit_tbptt.data.text.tokenizers import CharTokenizer, Tokenizer
from lit_tbptt.errors import InputError
from lit_tbptt.files.schema import Checkpoint
from lit_tbptt.models.language_model import RecurrentLM
from lit_tbptt.models.scoring import DocumentScore, Score, window_nats
from lit_tbptt.text_model.described import build_network, network_settings, tokenizer_of
from lit_tbptt.text_model.pretrained import local_folder, model_card, read_config, read_weights, upload, write_folder

Prompts = TypeVar("Prompts", str, list[str])
"""One text, or several."""

_PREFIX = "model."  # prefix of the network's weights in a LitLanguageModel


class TextModel:
    """A language model with its tokenizer: generates and scores text.

    Args:
        network: The language model.
        tokenizer: The tokenizer that the network was trained with.
        k1: The window length in training; `scores` processes as many tokens per call.
        carry_state: Whether the state was carried from window to window in training.
    """

    def __init__(self, network: RecurrentLM, tokenizer: Tokenizer, k1: int = 64, carry_state: bool = True) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.k1 = k1
        self.carry_state = carry_state

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, core: RecurrentCore | type[RecurrentCore] | None = None) -> Self:
        """Builds the language model of a checkpoint, in eval mode.

        Args:
            checkpoint: The result of `read_checkpoint` for a file written by a fit of a `LitLanguageModel`.
            core: For a core class of your own: the class, or a core built as it was in training.

        Raises:
            InputError: It is not such a checkpoint, the class of its core is required but not given, or the core does
                not match.
        """
        tokenizer, settings = tokenizer_of(checkpoint), checkpoint["hyper_parameters"]
        network = build_network(settings, tokenizer, core)
        weights = checkpoint["state_dict"]
        try:
            network.load_state_dict(
                {name.removeprefix(_PREFIX): value for name, value in weights.items() if name.startswith(_PREFIX)}
            )
        except RuntimeError as error:
            raise InputError(
                f"core: the checkpoint was trained with {settings['core']['class_path']}"
                f"({settings['core']['init_args']}), whose weights do not fit {type(network.core).__qualname__}"
                f"({network.core.init_args}): {'; '.join(map(str.strip, str(error).splitlines()[1:3]))}"
            ) from error
        return cls(network.eval(), tokenizer, settings["k1"], settings["carry_state"])

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], core: RecurrentCore | type[RecurrentCore] | None = None, **hub: Any
    ) -> Self:
        """Loads a language model written by `save_pretrained`, in eval mode.

        Args:
            name: A folder, or a name on the Hugging Face Hub.
            core: As in `from_checkpoint`.
            **hub: Arguments of `huggingface_hub.snapshot_download`, such as `revision`, `token` and `cache_dir`.

        Raises:
            InputError: There is no such model, or the class of its core is required but not given.
        """
        folder = local_folder(name, **hub)
        settings, described = read_config(folder)
        tokenizer = from_description(described)
        network = build_network(settings, tokenizer, core)
        read_weights(folder, network)
        return cls(network.eval(), tokenizer, settings["k1"], settings["carry_state"])

    def save_pretrained(self, folder: str | os.PathLike[str], metrics: Mapping[str, float] | None = None) -> None:
        """Saves the model to a folder: model.safetensors, config.json, the tokenizer, and a model card.

        Args:
            folder: The folder, which is created; existing files with these names are replaced.
            metrics: Metrics for the model card.

        Raises:
            InputError: A file cannot be written, or the core has arguments that are not plain values.
        """
        network, tokenizer = self.network, self.tokenizer.describe()
        settings = {**network_settings(network), "k1": self.k1, "carry_state": self.carry_state}
        num_parameters = sum(parameter.numel() for parameter in network.parameters())
        named = f"{self.tokenizer.name}, vocabulary of {self.tokenizer.vocabulary_size:,}"
        card = model_card(settings, num_parameters, named, metrics or {})
        write_folder(Path(folder), network, settings, tokenizer, card)

    def push_to_hub(
        self,
        name: str,
        private: bool | None = None,
        commit_message: str = "Upload model",
        metrics: Mapping[str, float] | None = None,
        **hub: Any,
    ) -> str:
        """Uploads the files of `save_pretrained` to the Hugging Face Hub and returns the URL.

        Args:
            name: The repository, user/model; it is created if it does not exist.
            private: Whether a new repository is private. None: the user's default.
            commit_message: The commit message.
            metrics: Metrics for the model card.
            **hub: Arguments of `huggingface_hub.HfApi`, such as `token` and `endpoint`.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, metrics)
            return upload(Path(folder), name, private, commit_message, **hub)

    # Generation

    def generate(
        self,
        prompts: Prompts,
        num_tokens: int = 400,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
        top_p: float | None = None,
        stop: str | None = None,
    ) -> Prompts:
        """Generates a continuation of each prompt, taken as the start of a document; see `RecurrentLM.generate`.

        Args:
            prompts: A text, or a list of texts.
            num_tokens: Number of tokens to generate per prompt.
            temperature: Divides the logits before sampling; 0 takes the most likely token.
            top_k: Sample only from the k most likely tokens. None: from all.
            seed: Prompt i uses a generator seeded with `seed + i`.
            top_p: Sample only from the smallest set of most likely tokens whose probabilities sum to p or more. None:
                from all.
            stop: End a text before the first occurrence of this string. None: never.

        Returns:
            The continuation of each prompt, without the prompt; a single text for a single prompt.

        Raises:
            InputError: An option is out of range, or a prompt has characters that are not in the vocabulary.
        """
        if isinstance(prompts, str):
            return self.generate([prompts], num_tokens, temperature, top_k, seed, top_p, stop)[0]
        options = (num_tokens, temperature, top_k, seed, top_p)
        starts = self._starts(prompts)
        if stop is not None:
            texts = [""] * len(starts)
            for pieces in self._pieces(starts, stop, *options):
                texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
            return texts
        # Prompt and continuation are decoded together, so that the space between them is not lost.
        return [
            self.tokenizer.decode(start + ids).removeprefix(self.tokenizer.decode(start))
            for start, ids in zip(starts, self.network.generate(starts, *options), strict=True)
        ]

    def stream(
        self,
        prompt: str,
        num_tokens: int = 400,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
        top_p: float | None = None,
        stop: str | None = None,
    ) -> Iterator[str]:
        """Yields the text of `generate` as it is sampled, in pieces of whole characters."""
        starts = self._starts([prompt])
        for (piece,) in self._pieces(starts, stop, num_tokens, temperature, top_k, seed, top_p):
            if piece:
                yield piece

    def _starts(self, prompts: Sequence[str]) -> list[list[int]]:
        if isinstance(self.tokenizer, CharTokenizer):
            unknown = sorted(set().union(*prompts).difference(self.tokenizer.characters))
            if unknown:
                raise InputError(
                    f"prompts: the model's vocabulary has no {', '.join(map(repr, unknown))}: a char tokenizer knows "
                    f"the {len(self.tokenizer.characters)} characters of its training text"
                )
        return [[self.tokenizer.eos, *ids.tolist()] for ids in self.tokenizer.encode(list(prompts))]

    def _pieces(self, starts: list[list[int]], stop: str | None, *options: Any) -> Iterator[list[str]]:
        """Yields the next piece of every text, until all texts have ended."""
        texts = [(IncrementalDecoder(self.tokenizer, start), StopText(stop)) for start in starts]
        for tokens in self.network.stream(starts, *options):
            yield [
                "" if token is None or until.reached else until.add(decoder.add(token))
                for token, (decoder, until) in zip(tokens, texts, strict=True)
            ]
            if all(until.reached for _, until in texts):
                return
        yield ["" if until.reached else until.add(decoder.end()) + until.end() for decoder, until in texts]

    # Scoring

    def scores(self, documents: Iterable[str]) -> Iterator[DocumentScore]:
        """Scores documents one by one, each starting from the initial state with `<eos>` as the first input.

        Every token is a target, including the `<eos>` at the end; with the word tokenizer, every line has one. A model
        that was trained without carried state also starts from the initial state at every window here.

        Args:
            documents: Their texts, or a single one.
        """
        eos = self.tokenizer.eos
        for text in [documents] if isinstance(documents, str) else documents:
            (ids,) = self.tokenizer.encode_documents([text])
            tokens = torch.from_numpy(ids.astype(np.int64))
            windows = [*window_nats(self.network, tokens, eos, self.k1, self.carry_state)]
            nats = torch.cat([torch.zeros(0, dtype=torch.double), *windows])
            num_unknown = self.tokenizer.num_unknown([text], [ids])
            total = Score(nats.sum().item(), len(tokens), len(text.encode()), num_unknown)
            yield DocumentScore(total, tokens, nats)
