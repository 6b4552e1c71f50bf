"""Echo-state networks: a fixed random recurrent network, of which only the linear readout is trained, in closed form.

    python examples/echo_state.py mackey_glass    # a chaotic series with delay 17, predicted from itself
    python examples/echo_state.py narma10         # a nonlinear system of order 10 that is driven by noise

Protocol. One lane is run from zeros over a series; its first steps are not scored (`burn_in`), the others give the
readout (`RidgeReadout`). A new series of the same kind is run in the same way for the one-step error, teacher-forced:
every input is the true one. In the closed loop, as in Jaeger (2001) and Jaeger & Haas (2004), the network runs 1000
true steps and then 84 of its own outputs; the 84th is compared, over 50 consecutive stretches of the series.
Errors are root mean squares divided by the standard deviation of the series (NRMSE); the square of that is the NMSE.
"""

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import nn

from lit_tbptt import EchoState, RidgeReadout, SequenceLanes, Task, Window


class Reservoir(Task, nn.Module):
    """A readout of the input, the state of an echo-state network, and, if asked for, their squares."""

    def __init__(self, squares: bool = False, **core) -> None:
        super().__init__()
        self.core, self.squares = EchoState(input_size=1, **core), squares
        self.readout = nn.Linear((1 + self.core.output_size) * (1 + squares), 1)
        self.double().requires_grad_(False)

    def initial_state(self, num_lanes):
        return self.core.initial_state(num_lanes)

    def predict_window(self, window, state):
        inputs = window.inputs[..., None]
        outputs, state = self.core(inputs, state)
        features = torch.cat([inputs, outputs], -1)
        return self.readout(torch.cat([features, features**2], -1) if self.squares else features)[..., 0], state

    def train_and_test(self, train, test, burn_in, l2):
        """Solves for the readout on one pair of series, (inputs, targets); returns the NRMSE on another one."""
        lanes = SequenceLanes([train], 1, 100, burn_in=burn_in, dtype=torch.float64)
        RidgeReadout(self, self.readout).add(lanes).solve(l2)
        outputs, _ = self.predict_window(Window(test[0][None], None), self.initial_state(1))
        return nrmse(outputs[0, burn_in:], test[1][burn_in:])


def nrmse(outputs, targets, variance=None):
    return ((outputs - targets).square().mean() / (targets.var() if variance is None else variance)).sqrt().item()


def mackey_glass_series(num_steps: int, seed: int, delay: int = 17, per_step: int = 10) -> torch.Tensor:
    """Returns `[time]` of dx/dt = .2 x(t - delay) / (1 + x(t - delay)^10) - .1 x, by Euler steps of a tenth."""
    past = (1.2 + 0.2 * np.random.default_rng(seed).uniform(-1, 1, delay * per_step + 1)).tolist()
    for _ in range((num_steps + 1000) * per_step):
        delayed = past[-delay * per_step - 1]
        past.append(past[-1] + (0.2 * delayed / (1 + delayed**10) - 0.1 * past[-1]) / per_step)
    return torch.tensor(past[-num_steps * per_step :: per_step], dtype=torch.float64)


def mackey_glass(num_units: int = 1000, spectral_radius: float = 0.88, leak: float = 0.396, input_scale: float = 0.56,
                 bias_scale: float = 0.028, num_steps: int = 3000, burn_in: int = 1000, num_starts: int = 50,
                 l2: float = 1e-9, seed: int = 1) -> dict[str, float]:  # fmt: skip
    """Learns to predict the next step of the series, squashed by tanh(x - 1); the scales are those of Jaeger (2001)."""
    train, test = mackey_glass_series(num_steps, 2 * seed), mackey_glass_series(num_starts * 1084, 2 * seed + 1)
    model = Reservoir(hidden_size=num_units, spectral_radius=spectral_radius, leak=leak, input_scale=input_scale,
                      bias_scale=bias_scale, seed=seed)  # fmt: skip
    pairs = [(series[:-1], series[1:]) for series in ((train - 1).tanh(), (test - 1).tanh())]
    one_step = model.train_and_test(*pairs, burn_in, l2)
    stretches = test.view(num_starts, 1084)
    outputs, state = model.predict_window(
        Window((stretches[:, :1000] - 1).tanh(), None), model.initial_state(num_starts)
    )
    for _ in range(83):
        outputs, state = model.predict_window(Window(outputs[:, -1:], None), state)
    return {"NRMSE": one_step, "NRMSE of step 84": nrmse(outputs[:, -1].atanh() + 1, stretches[:, -1], test.var())}


def narma10_series(num_steps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the input, uniform in [0, .5], and y(t + 1) = .3 y(t) + .05 y(t) (y(t - 9) + .. + y(t)) + 1.5 u(t - 9) u(t) + .1."""
    u, y = np.random.default_rng(seed).uniform(0, 0.5, num_steps + 10), [0.0] * 10
    for t in range(9, num_steps + 9):
        y.append(0.3 * y[t] + 0.05 * y[t] * sum(y[t - 9 : t + 1]) + 1.5 * u[t - 9] * u[t] + 0.1)
    return torch.from_numpy(u[9:-1]), torch.tensor(y[10:], dtype=torch.float64)


def narma10(num_units: int = 100, spectral_radius: float = 0.8, leak: float = 1.0, input_scale: float = 0.1,
            bias_scale: float = 0.1, num_steps: int = 2200, burn_in: int = 200, l2: float = 1e-9,
            squares: bool = True, seed: int = 1) -> dict[str, float]:  # fmt: skip
    """Learns to follow the system from its input."""
    train, test = narma10_series(num_steps, 2 * seed), narma10_series(num_steps, 2 * seed + 1)
    model = Reservoir(squares, hidden_size=num_units, spectral_radius=spectral_radius, leak=leak,
                      input_scale=input_scale, bias_scale=bias_scale, seed=seed)  # fmt: skip
    error = model.train_and_test(train, test, burn_in, l2)
    return {"NRMSE": error, "NMSE": error**2}


if __name__ == "__main__":
    print(auto_cli([mackey_glass, narma10]))
