"""What each token costs: window by window, as in one call."""

import math

import pytest
import torch
from torch.testing import assert_close

from lit_tbptt import GRU, LSTM, Adaptive, RecurrentLM
from lit_tbptt.models.scoring import Score, window_nats

WORDS, TOKENS, EOS = 13, 29, 5
NETWORKS = {
    "LSTM": lambda: RecurrentLM(WORDS, LSTM(6, 2, input_size=4), embedding_dropout=0.5, output_dropout=0.5),
    "tied GRU": lambda: RecurrentLM(WORDS, GRU(6, learned_initial_state=True), tie_weights=True),
    "tied LSTM, projected": lambda: RecurrentLM(WORDS, LSTM(6, input_size=4), tie_weights=True),
    "adaptive": lambda: RecurrentLM(WORDS, GRU(8), head=Adaptive([3, 7], 2.0)),
}


@pytest.fixture
def tokens():
    return torch.randint(WORDS, (TOKENS,))


def in_one_call(network, tokens):
    """The cost of each token by the definition: the logarithm of its probability after all before it."""
    inputs = torch.cat([torch.tensor([EOS]), tokens[:-1]])
    logits, _ = network(inputs[None], network.initial_state(1))
    return -torch.log_softmax(logits[0], -1).gather(1, tokens[:, None])[:, 0].detach()


@pytest.mark.parametrize("k1", [1, 2, 7, TOKENS - 1, TOKENS, 100])
@pytest.mark.parametrize("name", NETWORKS)
def test_windows_cost_what_one_call_costs(name, k1, tokens):
    network = NETWORKS[name]().double().train()
    windows = list(window_nats(network, tokens, EOS, k1))
    assert [len(window) for window in windows] == [min(k1, TOKENS - start) for start in range(0, TOKENS, k1)]
    assert network.training
    assert_close(torch.cat(windows), in_one_call(network.eval(), tokens), rtol=0, atol=1e-10)


def test_without_carried_state_every_window_begins_from_the_initial_state(tokens):
    network = NETWORKS["tied GRU"]().double().eval()
    found = torch.cat(list(window_nats(network, tokens, EOS, 7, carry_state=False)))
    for start in range(0, TOKENS, 7):
        before = EOS if start == 0 else int(tokens[start - 1])
        piece = tokens[start : start + 7]
        inputs = torch.cat([torch.tensor([before]), piece[:-1]])
        logits, _ = network(inputs[None], network.initial_state(1))
        expected = -torch.log_softmax(logits[0], -1).gather(1, piece[:, None])[:, 0]
        assert_close(found[start : start + 7], expected, rtol=0, atol=1e-10)


def test_the_sums_are_in_float64_whatever_the_weights_are(tokens):
    for dtype, exact in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        network = NETWORKS["LSTM"]().to(dtype).eval()
        found = torch.cat(list(window_nats(network, tokens, EOS, 7)))
        assert found.dtype == torch.double
        assert_close(found, in_one_call(network.double(), tokens), rtol=exact, atol=exact)


def test_a_score_is_summed_and_quoted():
    score = Score(2 * math.log(2), 3, 4, 0) + Score(math.log(2), 2, 2, 0)
    assert score == Score(3 * math.log(2), 5, 6, 0)
    assert score.bits_per_byte == pytest.approx(0.5, abs=1e-12)
    assert (score + Score(1.0, 1, 1, 1)).bits_per_byte is None
    assert Score(1.0, 1, 0, 0).bits_per_byte is None
