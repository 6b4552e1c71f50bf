"""What holds for any corpus, in both kinds of lanes."""

from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from letters import Letters, as_lists, stream_of, streamed, strided
from side_by_side import SideBySide, joined

from lit_tbptt import LSTM, NormalLengths, Rank, RecurrentLM, StreamedLanes, StridedLanes, Truncation

EOS = 0
SETTINGS = settings(
    max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


class Numbered(Letters):
    """Every token of a corpus has an id of its own; a text says how many it has and from which one on."""

    vocabulary_size = 2**20

    def encode(self, texts):
        return [np.arange(*map(int, text.split())) if text else np.arange(0) for text in texts]


def numbered(lengths):
    """Texts of these lengths: `begin end` of the ids."""
    ends = 1 + np.cumsum(lengths)
    return ["" if not n else f"{end - n} {end}" for n, end in zip(lengths, ends.tolist(), strict=True)]


def lanes_of(
    kind,
    texts,
    num_shards,
    num_lanes,
    k1,
    windows_per_batch,
    num_readers,
    document_reset,
    shuffle,
    seed_of_lengths,
    **rest,
):
    seed = 3 if shuffle else None
    if seed_of_lengths is not None:
        rest["window_lengths"] = NormalLengths(max(1, 0.7 * k1), 3, 1, 0.3, seed_of_lengths)
    if kind == "streamed":
        options = {"num_readers": num_readers, "document_reset": document_reset, "shuffle_seed": seed}
        stream = stream_of(texts, num_shards)
        lanes = StreamedLanes(stream, Numbered(), num_lanes, k1, windows_per_batch, **options, **rest)
    else:
        documents = [ids for ids in Numbered().encode_documents(texts) if len(ids)]
        options = {"document_reset": document_reset, "shuffle_seed": seed, "rotation_seed": seed}
        ends = np.cumsum([len(ids) for ids in documents])
        ids = np.concatenate(documents)
        rest.pop("all_gather", None)
        lanes = StridedLanes(ids, EOS, num_lanes, k1, windows_per_batch, document_ends=ends, **options, **rest)
    lanes.set_epoch(1)
    return lanes


@st.composite
def corpora(draw):
    lengths = draw(st.lists(st.one_of(st.just(0), st.integers(1, 5), st.integers(1, 60)), min_size=1, max_size=30))
    lengths[draw(st.integers(0, len(lengths) - 1))] += 1
    num_readers = draw(st.integers(1, min(3, len(lengths))))
    num_lanes = num_readers * draw(st.integers(1, 4))
    k1, document_reset = draw(st.integers(1, 9)), draw(st.booleans())
    seeds = st.none() if document_reset else st.one_of(st.none(), st.integers(0, 5))
    return {
        "seed_of_lengths": draw(seeds),
        "texts": numbered(lengths),
        "num_shards": draw(st.integers(num_readers, len(lengths))),
        "num_lanes": num_lanes,
        "k1": k1,
        "windows_per_batch": draw(st.integers(1, 4)),
        "num_readers": num_readers,
        "document_reset": document_reset,
        "shuffle": draw(st.booleans()),
    }


def enough(corpus):
    """Whether strided lanes can be made of a corpus: a token for every lane."""
    return sum(map(len, Numbered().encode_documents(corpus["texts"]))) >= corpus["num_lanes"]


@pytest.mark.parametrize("kind", ["strided", "streamed"])
@given(corpus=corpora())
@SETTINGS
def test_every_token_is_a_target_once_after_the_token_before_it(kind, corpus):
    if kind == "strided" and not enough(corpus):
        return
    documents = [ids.tolist() for ids in Numbered().encode_documents(corpus["texts"]) if len(ids)]
    before = {ids[0]: EOS for ids in documents} | {b: a for ids in documents for a, b in pairwise(ids[:-1])}
    rows, starts = [[] for _ in range(corpus["num_lanes"])], []
    for batch in lanes_of(kind, **corpus):
        assert 1 <= len(batch.windows) <= corpus["windows_per_batch"]
        for window in batch.windows:
            mask = window.mask_or_ones()
            assert mask.any()
            for lane, row in enumerate(rows):
                given_, targets = window.inputs[lane][mask[lane]].tolist(), window.targets[lane][mask[lane]].tolist()
                assert all(
                    before[target] == token for token, target in zip(given_, targets, strict=True) if target != EOS
                )
                row += targets
                if window.reset is not None and window.reset[lane] and targets:
                    starts.append(targets[0])
    assert sorted(chain(*rows)) == sorted(chain(*documents))
    if kind == "streamed" or corpus["document_reset"]:
        found = [part for row in rows for part in _documents(row)]
        assert sorted(found) == sorted(documents)
    if corpus["document_reset"]:
        assert sorted(starts) == sorted(ids[0] for ids in documents)


def _documents(row):
    found = [[]]
    for token in row:
        found[-1].append(token)
        if token == EOS:
            found.append([])
    assert found.pop() == []
    return found


@pytest.mark.parametrize("kind", ["strided", "streamed"])
@given(corpus=corpora(), num_ranks=st.integers(1, 4))
@SETTINGS
def test_ranks_together_make_the_same_batches(kind, corpus, num_ranks):
    if kind == "strided" and not enough(corpus):
        return
    num_lanes = corpus["num_lanes"]
    shares = [Rank(rank, num_ranks).share(num_lanes) for rank in range(num_ranks)]
    alone = as_lists(lanes_of(kind, **corpus))
    found = SideBySide(num_ranks).run(
        lambda rank, all_gather: lanes_of(kind, **corpus, local_lanes=shares[rank], all_gather=all_gather)
    )
    assert [len(batches) for batches in found] == [len(alone)] * num_ranks
    assert joined(found, shares) == joined([alone], [range(num_lanes)])


@given(corpus=corpora(), data=st.data())
@pytest.mark.parametrize("kind", ["strided", "streamed"])
@SETTINGS
def test_lanes_begin_at_any_batch(kind, corpus, data):
    if kind == "strided" and not enough(corpus):
        return
    whole = list(lanes_of(kind, **corpus))
    number = data.draw(st.integers(0, len(whole) - 1))
    skip = data.draw(st.integers(0, 1))
    lanes = lanes_of(kind, **corpus)
    lanes.load_state_dict({"position": whole[number].position, "skip": skip, "epoch": 1})
    assert as_lists(lanes) == as_lists(whole[number + skip :])


@pytest.mark.parametrize("make", [strided, streamed])
@pytest.mark.parametrize(("k1", "k2"), [(30, 30), (5, 5), (4, 11)])
def test_packed_documents_are_the_documents_one_by_one(make, k1, k2):
    """Losses and gradients of all windows, weights unchanged between them."""
    texts = ["abcdefg", "hi", "jklmnopqrstuvwxyzabcdefgh", "i", "jkl", "mnopqr", "", "stuvwxyzabc"]
    torch.manual_seed(3)
    model = RecurrentLM(27, LSTM(6, learned_initial_state=True)).double()

    def found(lanes):
        model.zero_grad()
        truncation, carry, total, count = Truncation(k1, k2), None, 0.0, 0
        for batch in lanes:
            for window in batch.windows:
                loss, num_targets, carry, _ = truncation(model, window, carry)
                carry = carry.detach()
                loss.backward()
                total, count = total + loss.item(), count + int(num_targets)
        return total, count, [parameter.grad.clone() for parameter in model.parameters()]

    packed = found(make(texts, 3, k1, 2, document_reset=True))
    one_by_one = [found(strided([text], 1, k1)) for text in texts if text]
    assert packed[1] == sum(count for _, count, _ in one_by_one)
    assert packed[0] == pytest.approx(sum(loss for loss, _, _ in one_by_one), abs=1e-10)
    for gradient, *parts in zip(packed[2], *(gradients for _, _, gradients in one_by_one), strict=True):
        assert torch.allclose(gradient, sum(parts), rtol=0, atol=1e-10)
