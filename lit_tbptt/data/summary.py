"""The summary of the corpus printed before a run: sizes of the splits, and the first windows as text."""

from collections.abc import Mapping, Sequence
from itertools import islice

from lit_tbptt.data.lanes.base import Lanes
from lit_tbptt.data.lanes.streamed import StreamedLanes
from lit_tbptt.data.lanes.strided import StridedLanes
from lit_tbptt.data.text.documents import NO_STREAM_IS_CUT
from lit_tbptt.data.text.stream import DocumentStream
from lit_tbptt.data.text.token_file import TokenFile
from lit_tbptt.data.text.tokenizers import UNKNOWN, Tokenizer
from lit_tbptt.data.text.trained_tokenizers import BytePairTokenizer, WordTokenizer
from lit_tbptt.errors import InputError
from lit_tbptt.ranks import Rank

_MOST_CHARACTERS = 60
# Among languages that separate words by white space, some average up to 31 bytes per word in UTF-8.
_MOST_BYTES_PER_WORD = 40
# The windows whose lengths are summarized.
_DRAWN = 100_000


def run_summary(
    splits: Mapping[str, TokenFile | DocumentStream], tokenizer: Tokenizer, lanes: Lanes, rank: Rank
) -> str:
    """Describes the corpus and the first windows of this process's lanes, without involving other processes."""
    parts = [corpus_table(splits, tokenizer)]
    if isinstance(lanes, StreamedLanes):
        lanes.all_gather = Rank().all_gather
        shares = [Rank(number, rank.num_ranks).share(lanes.num_lanes) for number in range(rank.num_ranks)]
        parts += reading_cost(lanes.num_readers, shares)
    try:
        parts.append(first_windows(lanes, tokenizer))
    except InputError:
        if rank.num_ranks == 1:
            raise
        # The lanes of this process have no text; whether any have is checked by all processes together.
    return "\n".join(parts)


def corpus_table(splits: Mapping[str, TokenFile | DocumentStream], tokenizer: Tokenizer) -> str:
    """Formats the sizes of the splits, as far as they are known, and notes what cannot be computed."""
    closed = tokenizer.unknown is not None
    lines = [
        f"{'split':12}{'documents':>14}{'tokens':>16}{'bytes':>16}{'bytes/token':>14}"
        + (f"{UNKNOWN:>10}" if closed else "")
    ]
    for split, source in splits.items():
        if isinstance(source, DocumentStream):
            lines.append(f"{split:12}streamed from {source.num_shards:,} shards")
        else:
            lines.append(
                f"{split:12}{source.num_documents:14,}{source.num_tokens:16,}{source.num_bytes:16,}"
                f"{source.bytes_per_token:14.3f}"
                + (f"{_percent(source.num_unknown, source.num_tokens):>10}" if closed else "")
                + (f"  ({source.num_empty:,} empty documents left out)" if source.num_empty else "")
            )
    lines.append(f"{tokenizer.name} tokenizer, vocabulary of {tokenizer.vocabulary_size:,}{_sample(tokenizer, splits)}")
    stored = {split: source for split, source in splits.items() if isinstance(source, TokenFile)}
    lossy = [split for split, source in stored.items() if source.num_unknown]
    if lossy:
        lines.append(
            f"no bits per byte of {' and '.join(lossy)}: {UNKNOWN} stands for text that the vocabulary does not have, "
            "and costs the same however long that is"
        )
    if "train" in stored:
        lines += long_words(tokenizer, stored["train"].bytes_per_token)
    if "validation" not in splits:
        lines.append("no validation split: nothing is validated" + ("" if stored else f"; {NO_STREAM_IS_CUT}"))
    return "\n".join(lines)


def _sample(tokenizer: Tokenizer, splits: Mapping[str, TokenFile | DocumentStream]) -> str:
    if not isinstance(tokenizer, BytePairTokenizer):
        return ""
    of = "the start of a stream" if isinstance(splits.get("train"), DocumentStream) else "text"
    return f", trained on {tokenizer.num_bytes:,} bytes of {of}"


def long_words(tokenizer: Tokenizer, bytes_per_token: float) -> list[str]:
    """Returns a note if the average word is so long that the text must have hardly any white space."""
    if not isinstance(tokenizer, WordTokenizer) or bytes_per_token <= _MOST_BYTES_PER_WORD:
        return []
    return [
        f"the words of the word tokenizer, cut at white space, have {bytes_per_token:.0f} bytes on average: this text "
        "has hardly any white space, as in Chinese, Japanese or Thai; choose byte, char, bpe, or a tokenizer of the "
        "Hugging Face Hub as data.tokenizer"
    ]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} %"


def reading_cost(num_readers: int, shares: Sequence[range]) -> list[str]:
    """Returns a note if processes share the lanes of a reader, so that the stream is read more than once.

    Args:
        num_readers: Number of groups of lanes.
        shares: The lanes of each process.
    """
    per_group = shares[-1].stop // num_readers
    reads = sum(len({lane // per_group for lane in share}) for share in shares)
    if reads == num_readers:
        return []
    return [
        f"{len(shares)} processes read the stream {reads / num_readers:.1f} times together, for a reader's lanes "
        f"lie in several of them; with a num_readers of {len(shares)}, or a multiple, they read it once"
    ]


def drawn_lengths(lanes: Lanes) -> list[str]:
    """Describes the windows of varying length, with the share of those that k1 shortens, from the first epoch's."""
    drawn = getattr(lanes, "window_lengths", None)
    if drawn is None:
        return []
    lengths = drawn(0, 0, _DRAWN)
    shortened = _percent(int((lengths > lanes.k1).sum()), _DRAWN)
    lengths = lengths.clip(max=lanes.k1)
    epoch = f"; {lanes.count_windows():,} windows in the first epoch" if isinstance(lanes, StridedLanes) else ""
    return [
        f"{drawn}: windows of {lengths.min()} to {lengths.max()} tokens, {lengths.mean():.1f} on average; {shortened} "
        f"of {_DRAWN:,} drawn ones are longer than k1={lanes.k1}, the maximum, and are shortened to it{epoch}"
    ]


def _lengths(lanes: Lanes) -> str:
    return str(lanes.k1) if getattr(lanes, "window_lengths", None) is None else f"up to {lanes.k1}"


def first_windows(lanes: Lanes, tokenizer: Tokenizer) -> str:
    """Returns the first two windows of two lanes as text: row i continues row i of the previous window."""
    windows = list(islice((window for batch in lanes for window in batch.windows), 2))
    about = f"{lanes.num_lanes:,} lanes"
    notes = []
    if isinstance(lanes, StreamedLanes):
        bytes_per_token = lanes.num_bytes / lanes.num_tokens
        about += f" (num_readers {lanes.num_readers}), {bytes_per_token:.3f} bytes/token at the start"
        if lanes.num_unknown:
            about += f", {_percent(lanes.num_unknown, lanes.num_tokens)} {UNKNOWN} (no bits per byte)"
        notes = long_words(tokenizer, bytes_per_token)
    lines = [*drawn_lengths(lanes), f"{about}; windows of {_lengths(lanes)} tokens, the first ones:"]
    for lane in sorted({0, len(lanes.local_lanes) // 2}):
        for number, window in enumerate(windows):
            text = tokenizer.decode(window.targets[lane][window.mask_or_ones()[lane]].tolist())
            cut = f"{text[:_MOST_CHARACTERS]!r} ..." if len(text) > _MOST_CHARACTERS else repr(text)
            lines.append(f"  lane {lanes.local_lanes[lane]}, window {number}: {cut}")
    empty = int((~windows[0].mask_or_ones().any(1)).sum())
    if empty:
        lines.append(
            f"{empty:,} of {len(lanes.local_lanes):,} lanes get no document at the start: use fewer "
            "lanes, or shorter documents (text files are one each, unless data.load_options.sample_by is line)"
        )
    return "\n".join(lines + notes)
