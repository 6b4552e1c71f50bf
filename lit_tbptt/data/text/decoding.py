"""Decodes tokens one by one: returns text once later tokens cannot change it, and finds the stop text."""

from collections.abc import Sequence

from lit_tbptt.data.text.tokenizers import Tokenizer
from lit_tbptt.errors import InputError

# Decoders return this for the first bytes of a character; some also for all bytes in a row before it. It becomes a
# character within four tokens; after that it cannot, and only the last three may still begin one.
_INCOMPLETE, _MOST_TOKENS, _MOST_INCOMPLETE = "\ufffd", 8, 3


class IncrementalDecoder:
    """Decodes tokens one by one into pieces that together equal the decoded whole.

    For each new token only the last few tokens are decoded again, so the cost per token does not grow.

    Args:
        tokenizer: The tokenizer.
        start: The preceding tokens; their text is not in the pieces.
    """

    def __init__(self, tokenizer: Tokenizer, start: Sequence[int]) -> None:
        self._decode = tokenizer.decode
        self._ids = list(start)  # starting where a character and a word begin
        self._num_decoded = len(self._ids)  # how many of these have final text
        self._length = len(self._decode(self._ids))  # length of the text already returned, or before the start

    def add(self, token: int) -> str:
        """Returns the text that becomes final with this token; it may be empty."""
        self._ids.append(token)
        text = self._decode(self._ids)
        complete = text.rstrip(_INCOMPLETE)
        is_long = len(self._ids) - self._num_decoded > _MOST_TOKENS
        piece = self._rest(text[:-_MOST_INCOMPLETE] if is_long and complete != text else complete)
        if complete == text:
            # Two tokens or more are decoded together, because a decoder may strip the space before the first.
            self._ids = self._ids[self._num_decoded :]
            self._num_decoded = len(self._ids)
            self._length = len(self._decode(self._ids))
        return piece

    def end(self) -> str:
        """Returns the text that was held back, after the last token."""
        return self._rest(self._decode(self._ids))

    def _rest(self, text: str) -> str:
        piece = text[self._length :]
        self._length = max(self._length, len(text))
        return piece


class StopText:
    """Ends a text before the first occurrence of a stop string.

    Args:
        stop: The stop string. None: the text never ends.

    Attributes:
        reached: Whether the text has ended.

    Raises:
        InputError: `stop` is empty.
    """

    def __init__(self, stop: str | None) -> None:
        if stop == "":
            raise InputError("stop='': must be a text of one character or more")
        self._stop = stop
        self._held = ""  # a possible beginning of `stop`
        self.reached = False

    def add(self, piece: str) -> str:
        """Returns the part of the text that is certainly before the stop string and was not returned yet."""
        if self._stop is None or self.reached:
            return "" if self.reached else piece
        text = self._held + piece
        before, found, _ = text.partition(self._stop)
        self.reached = bool(found)
        lengths = range(min(len(self._stop) - 1, len(text)), 0, -1)
        held = 0 if found else next((n for n in lengths if self._stop.startswith(text[-n:])), 0)
        self._held = text[len(text) - held :]
        return before if found else text[: len(text) - held]

    def end(self) -> str:
        """Returns the text that was held back, after the last piece."""
        held, self._held = self._held, ""
        return held
