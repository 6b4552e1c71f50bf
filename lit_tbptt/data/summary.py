"""What is printed of a corpus before a run, so that a user sees what the model will read."""

from collections.abc import Mapping, Sequence
from itertools import islice

from lit_tbptt.data.lanes.base import Lanes
from lit_tbptt.data.lanes.streamed import StreamedLanes
from lit_tbptt.data.text.stream import DocumentStream
from lit_tbptt.data.text.token_file import TokenFile
from lit_tbptt.data.text.tokenizers import Tokenizer
from lit_tbptt.errors import InputError
from lit_tbptt.ranks import Rank

_MOST_CHARACTERS = 60


def run_summary(
    splits: Mapping[str, TokenFile | DocumentStream], tokenizer: Tokenizer, lanes: Lanes, rank: Rank
) -> str:
    """Describes the corpus and the first windows of this process's lanes, which it reads without the others."""
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
        # There is no text in the lanes of this process; whether in any, all will see together.
    return "\n".join(parts)


def corpus_table(splits: Mapping[str, TokenFile | DocumentStream], tokenizer: Tokenizer) -> str:
    """Formats the sizes of the splits, as far as they are known."""
    lines = [f"{'split':12}{'documents':>14}{'tokens':>16}{'bytes':>16}{'bytes/token':>14}"]
    for split, source in splits.items():
        if isinstance(source, DocumentStream):
            lines.append(f"{split:12}streamed from {source.num_shards:,} shards")
        else:
            lines.append(
                f"{split:12}{source.num_documents:14,}{source.num_tokens:16,}{source.num_bytes:16,}"
                f"{source.bytes_per_token:14.3f}"
                + (f"  ({source.num_empty:,} empty documents left out)" if source.num_empty else "")
            )
    return "\n".join([*lines, f"{tokenizer.name} tokenizer, vocabulary of {tokenizer.vocabulary_size:,}"])


def reading_cost(num_readers: int, shares: Sequence[range]) -> list[str]:
    """Says how often a stream is read by processes that share the lanes of a reader; nothing if it is read once.

    Args:
        num_readers: Groups of lanes.
        shares: The lanes of every process.
    """
    per_group = shares[-1].stop // num_readers
    reads = sum(len({lane // per_group for lane in share}) for share in shares)
    if reads == num_readers:
        return []
    return [
        f"{len(shares)} processes read the stream {reads / num_readers:.1f} times together, for a reader's lanes "
        f"lie in several of them; with a num_readers of {len(shares)}, or a multiple, they read it once"
    ]


def first_windows(lanes: Lanes, tokenizer: Tokenizer) -> str:
    """Returns the first two windows of two lanes as text: row i of a window continues row i of the one before."""
    windows = list(islice((window for batch in lanes for window in batch.windows), 2))
    about = f"{lanes.num_lanes:,} lanes"
    if isinstance(lanes, StreamedLanes):
        about += f" (num_readers {lanes.num_readers}), {lanes.bytes_per_token:.3f} bytes/token at the start"
    lines = [f"{about}; windows of {lanes.k1} tokens, the first ones:"]
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
    return "\n".join(lines)
