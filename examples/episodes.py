"""Imitating an expert in episodes of very unequal length: what a memory is worth where little is observed.

Every gate of a corridor has a red and a green door; the goal is the colour to go through. Which side is red is seen at
the first step alone, and needed at all gates, up to 2000 steps later. Without a memory each costs ln 2 nats, as a coin.

    python examples/episodes.py
"""

import logging
from functools import partial
from math import log

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from torch.optim import Adam, lr_scheduler

from lit_tbptt import GRU, LitTBPTT, SequenceLanesDataModule, Window


class Corridors:
    """Corridors, of which one in n has n gates or more, up to 50; the gates are 10 to 30 steps apart."""

    def __init__(self, number: int, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.num_gates = (1 / torch.rand(number, generator=self.random)).clamp(max=50).floor()
        self.gap = torch.randint(10, 31, (number,), generator=self.random)
        self.goal, self.red = 2.0 * torch.randint(2, (2, number), generator=self.random) - 1

    def walk(self, policy=lambda time, seen, expert: expert):
        """Returns the episodes of a policy, labelled by the expert, and the share that ended behind the last gate."""
        x, y, passed, ended = torch.zeros(4, len(self.gap))
        side, steps = self.goal * self.red, []  # of the doors to go through
        while len(steps) < 2000 and not ended.all():
            contact, sensors = x == self.gap, 0.1 * torch.randn(len(x), 2, generator=self.random)
            sensors[:, 0] += self.red * (not steps)
            seen = {"position": torch.stack([x / 10, y], -1), "sensors": sensors, "contact": contact}
            # -1 is left, 0 ahead, 1 right; in one step of ten the wheels slip.
            expert = torch.where(contact, torch.where(y == 0, side, 0), -y)
            move, grips = policy(len(steps), seen, expert), torch.rand(len(x), generator=self.random) > 0.1
            steps.append(seen | {"action": expert.long() + 1})
            y = (y + move * grips).clamp(-1, 1)
            walking, ahead = ended == 0, grips & (move == 0)
            at_door = ahead & contact
            passed += walking & at_door & (y == side)
            ended[walking & (at_door & (y != side) | (passed == self.num_gates))] = len(steps)
            x = torch.where(at_door, 0, x + (ahead & (y == 0)))
        ended[ended == 0] = len(steps)
        columns = {name: torch.stack([step[name] for step in steps], 1) for name in steps[0]}
        parts = [{k: column[i, :n] for k, column in columns.items()} for i, n in enumerate(ended.int().tolist())]
        episodes = [part | {"goal": goal} for part, goal in zip(parts, self.goal[:, None], strict=True)]
        return episodes, (passed == self.num_gates).float().mean().item()


class Imitator(LitTBPTT):
    """A GRU that starts from a state computed from the goal, and chooses between left, ahead and right."""

    def __init__(self, hidden_size=48, **training):
        schedule = partial(lr_scheduler.ExponentialLR, gamma=0.25)  # by epoch
        super().__init__(optimizer=partial(Adam, lr=1e-2), lr_scheduler=schedule, clip_norm=1.0, **training)
        self.core = GRU(hidden_size, input_size=5)
        self.start, self.head = nn.Linear(1, hidden_size), nn.Linear(hidden_size, 3)

    def initial_state(self, num_lanes):
        return self.core.initial_state(num_lanes)

    def initial_state_of(self, static):
        return {"hidden": self.start(static).tanh()[:, None]}

    def predict_window(self, window, state):
        contact = window.inputs["contact"][..., None]
        features = torch.cat([window.inputs["position"], window.inputs["sensors"], contact], -1)
        outputs, state = self.core(features, state)
        return self.head(outputs), state

    def outputs_loss(self, outputs, window):
        mask = window.mask_or_ones()
        return nn.functional.cross_entropy(outputs[mask], window.targets[mask], reduction="sum"), mask.sum()

    @torch.no_grad()
    def success(self, corridors):
        """Returns the share of corridors that this policy gets through on its own."""

        def policy(time, seen, expert):
            if time == 0 or (not self.carry_state and time % self.truncation.k1 == 0):
                self.state = self.initial_state_of(corridors.goal[:, None])
            window = Window({name: leaf[:, None] for name, leaf in seen.items()}, None)
            outputs, self.state = self.predict_window(window, self.state)
            return outputs[:, 0].argmax(-1) - 1

        return corridors.walk(policy)[1]


def main(k1: int = 16, k2: int = 48, num_lanes: int = 16, num_episodes: int = 1000, num_epochs: int = 4) -> dict:
    """Trains with the state carried along the episodes, and with a reset at every window.

    Returns:
        The nats per step on held-out episodes and the share of other corridors walked to the end, of both models and
        at best without a memory; and the share of the training lanes that is padding.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    (train, _), (val, _) = Corridors(num_episodes, 1).walk(), Corridors(num_episodes // 4, 2).walk()
    data = SequenceLanesDataModule(train, val, inputs=["position", "sensors", "contact"], targets="action",
                                   static="goal", num_lanes=num_lanes, k1=k1, windows_per_batch=8)  # fmt: skip
    figures = {}
    for name, options in (("carried", {"k2": k2}), ("reset", {"carry_state": False})):
        seed_everything(1, verbose=False)
        model, quiet = Imitator(k1=k1, **options), {"enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(max_epochs=num_epochs, accelerator="cpu", logger=False, enable_checkpointing=False, **quiet)
        trainer.fit(model, data)
        figures[name] = trainer.callback_metrics["val/loss"].item(), model.success(Corridors(500, 3))
    nats = log(2) * torch.cat([each["contact"] & (each["position"][:, 1] == 0) for each in val]).float().mean().item()
    figures["memoryless"] = nats, (0.5 ** Corridors(500, 3).num_gates).mean().item()
    return figures | {"padding": data.train_dataloader().padding}


if __name__ == "__main__":
    print(auto_cli(main))
