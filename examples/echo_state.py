"""Echo-state networks: a fixed random recurrent network, of which only the linear readout is trained, in closed form.

    python examples/echo_state.py mackey_glass    # a chaotic series with delay 17, predicted from its own past
    python examples/echo_state.py narma10         # a nonlinear system of order 10 that is driven by noise

Protocol. One lane is run over a series from the initial state; its first steps are not scored (`burn_in`), the others
give the readout. A second series tests it. The one-step error is teacher-forced: every input is the true one. In the
closed loop (Jaeger 2001) the network runs 1000 true steps and then 84 of its own predictions, and the last of them is
compared, over 50 consecutive stretches of the series, in the original units. Errors are root mean squares divided by
the standard deviation of the targets (NRMSE); its square is the NMSE.
"""

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import nn

from lit_tbptt import EchoState, RidgeReadout, SequenceLanes, Task, Window


class Reservoir(Task, nn.Module):
    """A readout of the input and the state of an echo-state network, and of their squares if asked for."""

    def __init__(self, squares: bool = False, **core) -> None:
        super().__init__()
        self.core, self.squares = EchoState(input_size=1, **core), squares
        self.readout = nn.Linear((1 + self.core.output_size) * (1 + squares), 1)
        self.double().requires_grad_(False)

    def initial_state(self, num_lanes):
        return self.core.initial_state(num_lanes)

    def predict_window(self, window, state):
        outputs, state = self.core(window.inputs[..., None], state)
        features = torch.cat([window.inputs[..., None], outputs], -1)
        return self.readout(torch.cat([features, features**2], -1) if self.squares else features)[..., 0], state

    def train_and_test(self, train, test, burn_in, l2):
        """Fits the readout to a pair of series, (inputs, targets); returns the one-step NRMSE on another pair."""
        lanes = SequenceLanes([train], num_lanes=1, k1=100, burn_in=burn_in, dtypes=torch.float64)
        RidgeReadout(self, self.readout).add(lanes).solve(l2)
        outputs, _ = self.predict_window(Window(test[0][None], None), self.initial_state(1))
        return nrmse(outputs[0, burn_in:], test[1][burn_in:], test[1].var())


def nrmse(outputs, targets, variance):
    """Returns the root mean square error in standard deviations."""
    return ((outputs - targets).square().mean() / variance).sqrt().item()


def mackey_glass_series(num_steps: int, seed: int) -> torch.Tensor:
    """Returns `[time]` of dx/dt = .2 x(t - 17) / (1 + x(t - 17)^10) - .1 x: every tenth of Euler steps of .1."""
    x = np.random.default_rng(seed).uniform(1, 1.4, 171).tolist()
    for _ in range((num_steps + 1000) * 10):
        x.append(x[-1] + 0.1 * (0.2 * x[-171] / (1 + x[-171] ** 10) - 0.1 * x[-1]))
    return torch.tensor(x[-num_steps * 10 :: 10], dtype=torch.float64)


def mackey_glass(num_units: int = 1000, spectral_radius: float = 0.88, leak: float = 0.396, input_scale: float = 0.56,
                 bias_scale: float = 0.028, num_steps: int = 3000, burn_in: int = 1000, num_starts: int = 50,
                 l2: float = 1e-16, seed: int = 1) -> dict[str, float]:  # fmt: skip
    """Predicts the next step of the series, squashed by tanh(x - 1). The core's numbers are those of Jaeger (2001)."""
    train, test = mackey_glass_series(num_steps, 2 * seed), mackey_glass_series(num_starts * 1084, 2 * seed + 1)
    model = Reservoir(hidden_size=num_units, spectral_radius=spectral_radius, leak=leak, input_scale=input_scale,
                      bias_scale=bias_scale, seed=seed)  # fmt: skip
    pairs = [(series[:-1], series[1:]) for series in ((train - 1).tanh(), (test - 1).tanh())]
    one_step = model.train_and_test(*pairs, burn_in, l2)
    starts, ends = test.view(num_starts, 1084)[:, :1000], test.view(num_starts, 1084)[:, -1]
    outputs, state = model.predict_window(Window((starts - 1).tanh(), None), model.initial_state(num_starts))
    for _ in range(83):
        outputs, state = model.predict_window(Window(outputs[:, -1:], None), state)
    return {"NRMSE": one_step, "NRMSE_84": nrmse(outputs[:, -1].atanh() + 1, ends, test.var())}


def narma10_series(num_steps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns inputs u, uniform from 0 to .5, and targets y(t + 1), which depend on ten steps of both."""
    u, y = np.random.default_rng(seed).uniform(0, 0.5, num_steps + 9), [0.0] * 10
    for t in range(9, num_steps + 9):
        y.append(0.3 * y[t] + 0.05 * y[t] * sum(y[t - 9 : t + 1]) + 1.5 * u[t - 9] * u[t] + 0.1)
    return torch.from_numpy(u[9:]), torch.tensor(y[10:], dtype=torch.float64)


def narma10(num_units: int = 100, squares: bool = True, spectral_radius: float = 0.8, leak: float = 1.0,
            input_scale: float = 0.1, bias_scale: float = 0.1, num_steps: int = 2200, burn_in: int = 200,
            l2: float = 1e-9, seed: int = 1) -> dict[str, float]:  # fmt: skip
    """Follows the output of the system from its input."""
    model = Reservoir(squares, hidden_size=num_units, spectral_radius=spectral_radius, leak=leak,
                      input_scale=input_scale, bias_scale=bias_scale, seed=seed)  # fmt: skip
    series = [narma10_series(num_steps, 2 * seed + i) for i in range(2)]
    error = model.train_and_test(*series, burn_in, l2)
    return {"NRMSE": error, "NMSE": error**2}


if __name__ == "__main__":
    print(auto_cli([mackey_glass, narma10]))
