"""The lanes of a split of a corpus, whichever way it is read."""

from typing import Any

from lit_tbptt.data.lanes.base import Lanes
from lit_tbptt.data.lanes.streamed import StreamedLanes
from lit_tbptt.data.lanes.strided import StridedLanes
from lit_tbptt.data.text.stream import DocumentStream
from lit_tbptt.data.text.token_file import TokenFile
from lit_tbptt.data.text.tokenizers import Tokenizer
from lit_tbptt.errors import InputError
from lit_tbptt.ranks import Rank


def corpus_lanes(
    source: TokenFile | DocumentStream,
    split: str,
    tokenizer: Tokenizer,
    num_lanes: int,
    argument: str,
    rank: Rank,
    **options: Any,
) -> Lanes:
    """Lays a split into lanes: `StridedLanes` of a token file, `StreamedLanes` of a stream.

    Args:
        source: What the split is read from.
        split: Its name.
        tokenizer: Makes ids of texts.
        num_lanes: Parallel lanes, those of all processes together.
        argument: What sets this number, for the message.
        rank: This process, which gets its share of them.
        **options: Further arguments of these lanes.

    Raises:
        InputError: The split has too few tokens or shards for this number of lanes.
    """
    options["local_lanes"] = rank.share(num_lanes)
    if isinstance(source, DocumentStream):
        try:
            return StreamedLanes(source, tokenizer, num_lanes, all_gather=rank.all_gather, **options)
        except InputError as error:
            raise InputError(f"data.{error}") from None
    if source.num_tokens < num_lanes:
        raise InputError(
            f"data.{argument}={num_lanes}: the {split} split has {source.num_tokens} tokens, and every lane needs "
            f"one; set data.{argument} to {source.num_tokens} or fewer"
        )
    return StridedLanes(
        source.ids,
        tokenizer.eos,
        num_lanes,
        bytes_per_token=None if source.num_unknown else source.bytes_per_token,
        document_ends=source.document_ends,
        **options,
    )
