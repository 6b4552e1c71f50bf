"""Text from tokens that come one after the other: what no later token can change, and where it is to stop."""

from collections.abc import Sequence

from lit_tbptt.data.text.tokenizers import Tokenizer
from lit_tbptt.errors import InputError

# What a decoder makes of the first bytes of a character, and some of all bytes in a row before it, too. It becomes a
# character within four tokens; after more, it is no beginning, and only its last three may still be one.
_INCOMPLETE, _MOST_TOKENS, _MOST_INCOMPLETE = "\ufffd", 8, 3


class IncrementalDecoder:
    """Decodes tokens one by one, into pieces that together are the decoded whole.

    Only the last tokens are decoded again with every new one, so the cost of a token does not grow.

    Args:
        tokenizer: What the tokens mean.
        start: The tokens before; their text is not in the pieces.
    """

    def __init__(self, tokenizer: Tokenizer, start: Sequence[int]) -> None:
        self._decode = tokenizer.decode
        self._ids = list(start)  # from a place on where a character and a word begin
        self._num_decoded = len(self._ids)  # of these, the ones whose text is final
        self._length = len(self._decode(self._ids))  # of the text that is handed out or not asked for

    def add(self, token: int) -> str:
        """Returns the text that has become final with this token; it may be empty."""
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
        """Returns the text that was held back, when no token follows."""
        return self._rest(self._decode(self._ids))

    def _rest(self, text: str) -> str:
        piece = text[self._length :]
        self._length = max(self._length, len(text))
        return piece


class StopText:
    """Ends a text before the first place where a given text stands in it.

    Args:
        stop: The text. None: it never ends.

    Attributes:
        reached: Whether it has ended.

    Raises:
        InputError: `stop` is empty.
    """

    def __init__(self, stop: str | None) -> None:
        if stop == "":
            raise InputError("stop='': must be a text of one character or more")
        self._stop = stop
        self._held = ""  # a beginning of `stop`, which may go on
        self.reached = False

    def add(self, piece: str) -> str:
        """Returns what of the text so far is certain to stand before the stop and was not returned yet."""
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
        """Returns the text that was held back, when none follows."""
        held, self._held = self._held, ""
        return held
