"""A language model with its tokenizer: what writes and scores text. It knows no Lightning, so it starts sooner."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar

import numpy as np
import torch

from lit_tbptt.cores import RecurrentCore
from lit_tbptt.data.text.decoding import IncrementalDecoder, StopText
from lit_tbptt.data.text.tokenizers import CharTokenizer, Tokenizer, from_description
from lit_tbptt.errors import InputError
from lit_tbptt.files.schema import Checkpoint
from lit_tbptt.models.language_model import RecurrentLM
from lit_tbptt.models.scoring import DocumentScore, Score, window_nats
from lit_tbptt.text_model.described import build_network, network_settings, tokenizer_of
from lit_tbptt.text_model.pretrained import local_folder, model_card, read_config, read_weights, upload, write_folder

Prompts = TypeVar("Prompts", str, list[str])
"""One text, or several."""

_PREFIX = "model."  # of the network's weights in a LitLanguageModel


class TextModel:
    """A language model with its tokenizer.

    Args:
        network: The language model.
        tokenizer: What its tokens mean.
        k1: Tokens of a window in training; `scores` runs over as many at once.
        carry_state: Whether a window started in training from the state that the one before it left.
    """

    def __init__(self, network: RecurrentLM, tokenizer: Tokenizer, k1: int = 64, carry_state: bool = True) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.k1 = k1
        self.carry_state = carry_state

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, core: RecurrentCore | type[RecurrentCore] | None = None) -> Self:
        """Makes the language model of a checkpoint that was read, in eval mode.

        Args:
            checkpoint: What `read_checkpoint` returned for a file that a fit of a `LitLanguageModel` wrote.
            core: A core of your own class, built as it was in training, or the class.

        Raises:
            InputError: It is not such a checkpoint, or its core is of a class that must be given, or of another one
                than is given.
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
        """Makes the language model that `save_pretrained` wrote, in eval mode.

        Args:
            name: A folder, or a name on the Hugging Face Hub.
            core: As in `from_checkpoint`.
            **hub: Arguments of `huggingface_hub.snapshot_download`, such as `revision`, `token` and `cache_dir`.

        Raises:
            InputError: There is no such model, or its core is of a class that must be given.
        """
        folder = local_folder(name, **hub)
        settings, described = read_config(folder)
        tokenizer = from_description(described)
        network = build_network(settings, tokenizer, core)
        read_weights(folder, network)
        return cls(network.eval(), tokenizer, settings["k1"], settings["carry_state"])

    def save_pretrained(self, folder: str | os.PathLike[str], metrics: Mapping[str, float] | None = None) -> None:
        """Writes the model as a folder: model.safetensors, config.json, the tokenizer, and a model card.

        Args:
            folder: Is created; files of these names in it are replaced.
            metrics: What the model card says of the model.

        Raises:
            InputError: A file cannot be written, or the core has arguments that are no plain values.
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
        """Uploads what `save_pretrained` writes to the Hugging Face Hub, and returns its address.

        Args:
            name: The repository, user/model; it is created if there is none.
            private: Whether a new repository is private. None: the default of the user.
            commit_message: Of the commit.
            metrics: What the model card says of the model.
            **hub: Arguments of `huggingface_hub.HfApi`, such as `token` and `endpoint`.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, metrics)
            return upload(Path(folder), name, private, commit_message, **hub)

    # Writing

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
        """Returns what follows each prompt, which stands at a document's start; see `RecurrentLM.generate`.

        Args:
            prompts: A text, or a list of them.
            num_tokens: Tokens to add to each.
            temperature: Divides the logits before sampling; 0 takes the likeliest token.
            top_k: Sample among the k likeliest tokens only. None: among all.
            seed: Prompt i draws from a generator seeded with `seed + i`.
            top_p: Sample among the fewest likeliest tokens whose probabilities sum to p or more. None: among all.
            stop: Ends a text before the first place where it stands in it. None: no text does.

        Returns:
            The new text of each prompt, without the prompt; for a single text a single text.

        Raises:
            InputError: An option is out of its range, or a prompt has characters that the vocabulary lacks.
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
        # Decoded together, so that what stands between the last word given and the first one added is not lost.
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
        """Yields the text of `generate` as it is written, in pieces that hold whole characters."""
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
        """Yields the next piece of every text, until all have ended."""
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
        """Scores documents one by one, each from its start: the input is `<eos>`, the state the initial one.

        Every token is a target, and so is the `<eos>` at the end; with the word tokenizer every line has one. A model
        that was trained without carried state starts from the initial state at every window here, too.

        Args:
            documents: Their texts.
        """
        eos = self.tokenizer.eos
        for text in documents:
            (ids,) = self.tokenizer.encode_documents([text])
            tokens = torch.from_numpy(ids.astype(np.int64))
            windows = [*window_nats(self.network, tokens, eos, self.k1, self.carry_state)]
            nats = torch.cat([torch.zeros(0, dtype=torch.double), *windows])
            num_unknown = self.tokenizer.num_unknown([text], [ids])
            total = Score(nats.sum().item(), len(tokens), len(text.encode()), num_unknown)
            yield DocumentScore(total, tokens, nats)
