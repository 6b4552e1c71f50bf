"""The textbook's tanh RNN language model in numpy, its backward pass written by hand, beside ours."""

import numpy as np
import pytest
import torch

from lit_tbptt import RNN, RecurrentLM, Truncation, Window

VOCABULARY, WIDTH, HIDDEN, LANES, K1, STEPS = 11, 7, 5, 3, 4, 27


class TextbookRNNLM:
    """Embedding, h = tanh(h Wh + x Wx + b) stacked in time with a stateful h, affine, softmax with loss."""

    def __init__(self, rng):
        def draw(*shape):
            return rng.normal(0, 0.6, shape)

        self.params = {
            "embedding": draw(VOCABULARY, WIDTH),
            "Wx": draw(WIDTH, HIDDEN),
            "Wh": draw(HIDDEN, HIDDEN),
            "b": draw(HIDDEN),
            "W": draw(HIDDEN, VOCABULARY),
            "c": draw(VOCABULARY),
        }
        self.h = np.zeros((LANES, HIDDEN))

    def forward(self, inputs, targets):
        p, lanes = self.params, np.arange(LANES)
        self.cache, total = [], 0.0
        for t in range(inputs.shape[1]):
            x, before = p["embedding"][inputs[:, t]], self.h
            self.h = np.tanh(before @ p["Wh"] + x @ p["Wx"] + p["b"])
            scores = self.h @ p["W"] + p["c"]
            scores -= scores.max(1, keepdims=True)
            probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            total -= np.log(probabilities[lanes, targets[:, t]]).sum()
            self.cache.append((inputs[:, t], targets[:, t], x, before, self.h, probabilities))
        return total / inputs.size

    def backward(self):
        p = self.params
        grads = {name: np.zeros_like(value) for name, value in p.items()}
        dh_next, lanes = np.zeros((LANES, HIDDEN)), np.arange(LANES)
        for ids, answers, x, before, h, probabilities in reversed(self.cache):
            dscores = probabilities.copy()
            dscores[lanes, answers] -= 1
            dscores /= LANES * len(self.cache)
            grads["W"] += h.T @ dscores
            grads["c"] += dscores.sum(0)
            dt = (dscores @ p["W"].T + dh_next) * (1 - h**2)
            grads["b"] += dt.sum(0)
            grads["Wh"] += before.T @ dt
            grads["Wx"] += x.T @ dt
            np.add.at(grads["embedding"], ids, dt @ p["Wx"].T)
            dh_next = dt @ p["Wh"].T
        return grads


class Ours(RecurrentLM):
    def __init__(self, textbook):
        super().__init__(VOCABULARY, RNN(HIDDEN, input_size=WIDTH))
        self.double()
        for name, weight in self.named().items():
            weight.data = (
                torch.tensor(textbook.params[name]).T
                if name in ("Wx", "Wh", "W")
                else torch.tensor(textbook.params[name])
            )
        self.core.rnn[0].bias_hh_l0.data.zero_()

    def named(self):
        rnn = self.core.rnn[0]
        return {
            "embedding": self.embedding.weight,
            "Wx": rnn.weight_ih_l0,
            "Wh": rnn.weight_hh_l0,
            "b": rnn.bias_ih_l0,
            "W": self.head.weight,
            "c": self.head.bias,
        }


@pytest.mark.parametrize("carried", [True, False])
def test_loss_and_gradients_are_the_textbooks(carried):
    rng = np.random.default_rng(5)
    textbook = TextbookRNNLM(rng)
    ours, truncation, carry = Ours(textbook), Truncation(K1), None
    ids = rng.integers(0, VOCABULARY, (LANES, STEPS + 1))
    for start in range(0, STEPS, K1):
        end = min(start + K1, STEPS)
        inputs, targets = ids[:, start:end], ids[:, start + 1 : end + 1]
        if not carried:
            textbook.h, carry = np.zeros((LANES, HIDDEN)), None
        expected_loss = textbook.forward(inputs, targets)
        expected = textbook.backward()
        window = Window(torch.from_numpy(inputs), torch.from_numpy(targets))
        loss, num_targets, carry, _ = truncation(ours, window, carry)
        carry = carry.detach()
        loss = loss / num_targets
        ours.zero_grad()
        loss.backward()
        assert abs(loss.item() - expected_loss) < 1e-10
        for name, weight in ours.named().items():
            found = weight.grad.numpy()
            assert np.abs((found.T if name in ("Wx", "Wh", "W") else found) - expected[name]).max() < 1e-10, name
            weight.data -= 0.5 * weight.grad
            textbook.params[name] -= 0.5 * expected[name]
