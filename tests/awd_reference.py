"""AWD-LSTM as its paper says it: time step by time step, with masks that are given, and truncation written out."""

import torch
from torch.nn.functional import cross_entropy


def lstm_step(x, h, c, weights, dropped):
    """One time step of one layer, `[lane, feature]`; `dropped` are the factors of the recurrent matrix."""
    w, u, b, b_h = weights
    i, f, g, o = (x @ w.t() + b + h @ (u if dropped is None else u * dropped).t() + b_h).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def core_step(x, state, layers, noise):
    """One time step of all layers; `noise` as `AWDLSTM.begin_window` returns it, or None."""
    after = []
    for number, ((h, c), weights) in enumerate(zip(state, layers, strict=True)):
        dropped = None
        if noise is not None:
            dropped, features = noise["weights"][number], noise["features"][number]
            x = x if features is None else x * features[:, 0]
        x, c = lstm_step(x, h, c, weights, dropped)
        after.append((x, c))
    return x, after


def zeros(layers, lanes):
    return [
        (layer[1].new_zeros(lanes, layer[1].shape[1]), layer[1].new_zeros(lanes, layer[1].shape[1])) for layer in layers
    ]


def layers_of(core, prefix=""):
    """The weights of every layer by the names of a core's parameters."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return [[f"{prefix}layers.{number}.rnn.0.{name}" for name in names] for number in range(len(core.layers))]


class Reference:
    """A language model with tied weights, trained by truncated backpropagation through time with one graph a window.

    Args:
        model: The `RecurrentLM` whose weights are copied.
        ids: `[lane, time]` tokens; those one later are the targets.
        resets: By time step, which lanes are reset there.
    """

    def __init__(self, model, ids, k1, k2, resets):
        self.weights = {name: part.detach().clone().requires_grad_() for name, part in model.named_parameters()}
        self.names = layers_of(model.core, "core.")
        self.ids, self.k1, self.k2, self.resets = ids, k1, k2, resets
        self.states = {0: None}

    def loss(self, number, noise):
        """The summed loss of window `number`; the weights get its gradient."""
        start = number * self.k1
        end, far_edge = start + self.k1, max(0, start - (self.k2 - self.k1))
        table, bias = self.weights["embedding.weight"], self.weights["head.bias"]
        layers = [[self.weights[name] for name in names] for names in self.names]
        nothing = zeros(layers, len(self.ids))
        state = nothing if self.states[far_edge] is None else self.states[far_edge]
        state = [(h.detach(), c.detach()) for h, c in state]
        total, self.states = 0.0, {}
        for time in range(far_edge, end):
            self.states[time] = state
            if time in self.resets:
                again = self.resets[time][:, None]
                state = [(torch.where(again, 0.0, h), torch.where(again, 0.0, c)) for h, c in state]
            token = self.ids[:, time]
            x = table[token]
            if noise is not None:
                x = x * noise["vocabulary"][token] * noise["embedding"][:, 0]
            x, state = core_step(x, state, layers, None if noise is None else noise["core"])
            if time >= start:
                x = x if noise is None else x * noise["output"][:, 0]
                total = total + cross_entropy(x @ table.t() + bias, self.ids[:, time + 1], reduction="sum")
        self.states[end] = state
        for part in self.weights.values():
            part.grad = None
        total.backward()
        return total.detach()

    def step(self, rate):
        with torch.no_grad():
            for part in self.weights.values():
                part -= rate * part.grad
