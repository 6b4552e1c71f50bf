"""A task on sequences: trained, evaluated, stopped and continued, with the numbers of its data module."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.testing import assert_close

from lit_tbptt import InputError, LitTBPTT, Normalization, SequenceLanes, SequenceLanesDataModule, Window
from lit_tbptt.data.sequences.normalization import Moments
from lit_tbptt.training.sequence_data import report


class Policy(LitTBPTT):
    """Imitates actions from nested observations, from a start that the goal decides."""

    def __init__(self, k1=4, **options):
        super().__init__(k1, **options)
        self.core = nn.GRU(3, 5, batch_first=True)
        self.head = nn.Linear(5, 2)
        self.start = nn.Linear(2, 5)

    def initial_state(self, num_lanes):
        return self.start.bias.expand(num_lanes, -1)

    def initial_state_of(self, static):
        return self.start(static["goal"])

    def window_loss(self, window, state):
        inputs = torch.cat([window.inputs["speed"], window.inputs["angle"][..., None]], -1)
        outputs, state = self.core(inputs, state[None].contiguous())
        errors = (self.head(outputs) - window.targets).square().sum(-1)[window.mask_or_ones()]
        return errors.sum(), window.mask_or_ones().sum(), state[0]


def episodes(number, seed, scale=1.0):
    generator = np.random.default_rng(seed)
    return [
        {
            "speed": scale * generator.normal(3, 2, (n, 2)),
            "angle": generator.normal(-7, 0.5, n),
            "action": generator.normal(100, 9, (n, 2)),
            "goal": generator.normal(size=2).astype(np.float32),
        }
        for n in generator.integers(3, 19, number)
    ]


OPTIONS = {"inputs": ["speed", "angle"], "targets": "action", "static": ["goal"], "k1": 4, "num_lanes": 3}


def data(test=None, **options):
    return SequenceLanesDataModule(
        episodes(11, 1),
        episodes(5, 2),
        test or episodes(4, 3),
        **OPTIONS | {"windows_per_batch": 2} | options,
    )


def trainer(tmp_path, max_steps=-1, **options):
    return Trainer(
        max_steps=max_steps,
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        **options,
    )


def test_normalized_sequences_have_mean_zero_and_deviation_one(tmp_path):
    made = data(normalize=True, shuffle=False)
    made.setup("fit")
    items = episodes(11, 1)
    values = {name: np.concatenate([item[name] for item in items]) for name in ("speed", "angle", "action")}
    windows = [window for batch in made.train_dataloader() for window in batch.windows]
    ours = torch.cat([window.targets[window.mask_or_ones()] for window in windows])
    assert_close(ours.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    assert_close(ours.std(0, correction=0), torch.ones(2))
    assert_close(made.normalization.statistics["targets"][0], torch.from_numpy(values["action"].mean(0)))
    assert_close(made.normalization.statistics["inputs['speed']"][1], torch.from_numpy(values["speed"].std(0)))
    assert_close(made.normalization.statistics["inputs['angle']"][1], torch.tensor(values["angle"].std()))
    restored = made.normalization.restore(windows[0].targets[0, :3])
    assert_close(restored, torch.from_numpy(items[0]["action"][:3]).float())
    with pytest.raises(InputError, match=r"place=targets\['action'\]: there are no statistics of it, but of inputs"):
        made.normalization.restore({"action": restored})


def test_missing_numbers_do_not_count_and_constants_are_shifted():
    items = [
        {"x": np.zeros(2), "y": np.array([[1.0, 7.0], [np.nan, 7.0]]), "known": np.array([True, False])},
        {"x": np.ones(1), "y": np.array([[3.0, 7.0]]), "known": np.array([True])},
    ]
    made = SequenceLanesDataModule(items, inputs="x", targets="y", mask="known", num_lanes=1, normalize=True)
    made.setup("fit")
    made.train_dataloader()
    assert_close(made.normalization.statistics["targets"], (torch.tensor([2.0, 7.0]).double(), torch.ones(2).double()))


def test_a_constant_is_0_although_the_windows_round_it():
    made = SequenceLanesDataModule([np.full((n, 1), 0.1) for n in (333, 517)], shift=1, num_lanes=2, normalize=True)
    made.setup("fit")
    windows = [window for batch in made.train_dataloader() for window in batch.windows]
    values = torch.cat([window.inputs[window.mask_or_ones()] for window in windows])
    assert len(values) == 848
    assert values.abs().max() < 1e-6


@pytest.mark.parametrize("missing", [-999.0, np.nan, np.inf])
def test_targets_that_the_mask_leaves_out_do_not_count(missing):
    """The inputs there do: they are run."""
    items = [
        {"x": np.array([2.0, 4.0, 6.0]), "y": np.array([1.0, missing, 5.0]), "known": np.array([1, 0, 1])},
        {"x": np.array([8.0, 10.0]), "y": np.array([missing, missing]), "known": np.array([0, 0])},
    ]
    made = SequenceLanesDataModule(items, inputs="x", targets="y", mask="known", num_lanes=2, normalize=True)
    made.setup("fit")
    made.train_dataloader()
    numbers = {place: tuple(map(float, pair)) for place, pair in made.normalization.statistics.items()}
    assert numbers == {"inputs": (6.0, pytest.approx(8**0.5)), "targets": (3.0, 2.0)}


@pytest.mark.parametrize("name", ["x", "y"])
def test_infinite_values_have_no_statistics(name):
    items = [{"x": torch.ones(3), "y": torch.ones(3)} for _ in range(3)]
    items[2][name][1] = -torch.inf
    made = SequenceLanesDataModule(items, inputs="x", targets="y", num_lanes=2, normalize=True)
    made.setup("fit")
    with pytest.raises(InputError, match=rf"item 2: {'inputs' if name == 'x' else 'targets'} has an infinite value"):
        made.train_dataloader()


def test_an_evaluation_uses_the_statistics_of_the_checkpoint(tmp_path):
    first = trainer(tmp_path, max_steps=3)
    model = Policy()
    first.fit(model, data(normalize=True))
    first.save_checkpoint(tmp_path / "a.ckpt")
    (expected,) = first.test(model, data(normalize=True), verbose=False)
    other = SequenceLanesDataModule(test=episodes(4, 3), **OPTIONS, normalize=True)
    (ours,) = trainer(tmp_path).test(Policy(), other, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert ours == expected
    with pytest.raises(InputError, match="of a training split, and there is none"):
        trainer(tmp_path).test(Policy(), SequenceLanesDataModule(test=episodes(4, 3), **OPTIONS, normalize=True))


def test_training_without_normalization_leaves_the_statistics_of_a_checkpoint_alone(tmp_path):
    first, model = trainer(tmp_path, max_steps=3), Policy()
    first.fit(model, data(normalize=True))
    first.save_checkpoint(tmp_path / "a.ckpt")
    again, plain = data(shuffle=False), data(shuffle=False)
    trainer(tmp_path).validate(Policy(), again, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert again.normalization is not None
    for made in (again, plain):
        trainer(tmp_path, max_steps=1).fit(Policy(), made)
    ours, theirs = (next(iter(made.train_dataloader())).windows[0].targets for made in (again, plain))
    assert_close(ours, theirs, rtol=0, atol=0)
    assert "statistics" not in again.state_dict()


def test_one_data_module_evaluates_several_checkpoints_each_as_it_was_trained(tmp_path):
    for name, normalize in (("a", True), ("b", False)):
        first = trainer(tmp_path, max_steps=3)
        first.fit(Policy(), data(normalize=normalize))
        first.save_checkpoint(tmp_path / f"{name}.ckpt")

    def tested(made, name):
        (found,) = trainer(tmp_path).test(Policy(), made, ckpt_path=tmp_path / f"{name}.ckpt", verbose=False)
        return found

    a, b = tested(data(normalize=True), "a"), tested(data(), "b")
    for normalize in (True, False):
        made = data(normalize=normalize)
        assert [tested(made, name) for name in ("a", "b", "a")] == [a, b, a]
    others = [{name: leaf * 9 for name, leaf in item.items()} for item in episodes(5, 3)]
    mixed, new = (SequenceLanesDataModule(others, test=others, **OPTIONS, normalize=True) for _ in range(2))
    tested(mixed, "a")
    for made in (mixed, new):
        trainer(tmp_path, max_steps=1).fit(Policy(), made)
    assert_close(mixed.normalization.statistics, new.normalization.statistics, rtol=0, atol=0)


def louder(part, generator):
    return part | {"speed": part["speed"] * 2}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"normalize": True}, {}, "data.normalize=False, where the run to be resumed has data.normalize=True"),
        ({}, {"normalize": True}, "data.normalize=True, where the run to be resumed has data.normalize=False"),
        ({"transform": louder}, {}, "transform=None, where the run to be resumed has transform=louder"),
        ({}, {"transform": louder}, "transform=louder, where the run to be resumed has transform=None"),
    ],
)
def test_a_resumed_run_keeps_its_normalization_and_transform(before, after, message, tmp_path):
    first = trainer(tmp_path, max_steps=3)
    first.fit(Policy(), data(**before))
    first.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, max_steps=5).fit(Policy(), data(**after), ckpt_path=tmp_path / "a.ckpt")
    trainer(tmp_path).test(Policy(), data(**after), ckpt_path=tmp_path / "a.ckpt", verbose=False)


@pytest.mark.parametrize("steps", [1, 5, 8])
def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_bits(steps, tmp_path):
    options = {"normalize": True, "burn_in": 5, "max_length": 9, "random_lanes": 0}

    def fitted(max_steps, ckpt_path=None):
        torch.manual_seed(3)
        model, at = Policy(k2=6, clip_norm=1.0), trainer(tmp_path, max_steps)
        at.fit(model, data(**options), ckpt_path=ckpt_path)
        return model, at

    whole, last = fitted(14)
    _, stopped = fitted(steps)
    stopped.save_checkpoint(tmp_path / "a.ckpt")
    again, _ = fitted(14, tmp_path / "a.ckpt")
    assert last.global_step == 14
    assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert_close(again.carry.state, whole.carry.state, rtol=0, atol=0)


class Plain(Policy):
    """Has one tensor as its inputs, and nothing static."""

    initial_state_of = LitTBPTT.initial_state_of

    def window_loss(self, window, state):
        inputs = {"speed": window.inputs[..., :2], "angle": window.inputs[..., 2]}
        return super().window_loss(window._replace(inputs=inputs), state)


def test_sequences_that_are_never_scored_are_counted():
    items = [torch.zeros(n) for n in (3, 9, 4, 5, 2)]
    said = report(SequenceLanes(items, 1, 4, burn_in=4))
    assert said.endswith("3 sequences are not longer than burn_in=4 and are never scored")
    assert "17 time steps are never scored" in said
    assert "never scored" not in report(SequenceLanes(items, 1, 4))


def test_a_run_without_an_end_is_warned_of(tmp_path):
    for options in ({"max_time": "00:00:01:00"}, {"max_steps": 2}, {"limit_train_batches": 3}, {"fast_dev_run": True}):
        made = data(repeat=True)
        made.trainer = trainer(tmp_path, **options)
        made.setup("fit")  # warnings are errors
    made = data(repeat=True)
    made.trainer = trainer(tmp_path)
    with pytest.warns(UserWarning, match="data.repeat=True: the epoch never ends.*set trainer.max_steps or"):
        made.setup("fit")


def test_items_of_given_lengths_are_not_opened():
    class Recordings(list):
        opened = 0

        def __getitem__(self, index):
            Recordings.opened += 1
            return super().__getitem__(index)

    train, val = episodes(40, 1), episodes(20, 2)
    lengths = {"train": [len(item["angle"]) for item in train], "val": np.array([len(item["angle"]) for item in val])}
    made = SequenceLanesDataModule(Recordings(train), Recordings(val), **OPTIONS, lengths=lengths)
    made.setup("fit")
    assert Recordings.opened < 30
    windows = [window for batch in made.val_dataloader() for window in batch.windows]
    assert sum(int(window.mask_or_ones().sum()) for window in windows) == lengths["val"].sum()
    lengths["val"][3] += 1
    with pytest.raises(InputError, match=r"item 3: lengths\[3\]=\d+, and its leaf"):
        list(SequenceLanesDataModule(train, val, **OPTIONS, lengths=lengths).val_dataloader())


def test_a_window_without_any_target_takes_no_step(tmp_path):
    items = [{"x": torch.randn(9, 3), "y": torch.randn(9, 2)} for _ in range(2)]
    model = Plain(2, optimizer=torch.optim.SGD)
    made = SequenceLanesDataModule(items, inputs="x", targets="y", num_lanes=2, k1=2, windows_per_batch=3, burn_in=5)
    at = trainer(tmp_path)
    at.fit(model, made)
    assert at.global_step == 2 * 3  # windows 2, 3 and 4 of two epochs
    assert model.position.step == 6


class Weights(Callback):
    """Keeps the weights and the state after every window."""

    def __init__(self):
        self.seen = []

    def on_window_end(self, trainer, module, window):
        weights = torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()
        self.seen.append((bool(window.mask_or_ones().any()), weights, module.carry.state.clone()))


def test_a_window_that_a_mask_leaves_without_any_target_takes_no_step(tmp_path):
    scored = [{0, 1, 7}, {1, 8}]  # windows 0, 3 and 4 of five
    items = [
        {"x": torch.randn(9, 3), "y": torch.randn(9, 2), "ok": torch.tensor([t in some for t in range(9)])}
        for some in scored
    ]
    model, weights = Plain(2), Weights()
    options = {"inputs": "x", "targets": "y", "mask": "ok", "num_lanes": 2, "k1": 2, "windows_per_batch": 3}
    at = trainer(tmp_path, callbacks=[weights])
    at.fit(model, SequenceLanesDataModule(items, **options))
    assert [heard for heard, *_ in weights.seen] == [True, False, False, True, True] * 2
    assert at.global_step == model.position.step == 6
    for (_, before, state), (heard, after, next_state) in pairwise(weights.seen):
        assert torch.equal(after, before) != heard
        assert not torch.equal(next_state, state)


def test_data_without_any_target_train_nothing_and_say_so(tmp_path):
    items = [{"x": torch.randn(9, 3), "y": torch.randn(9, 2), "ok": torch.zeros(9, dtype=torch.bool)}] * 2
    made = SequenceLanesDataModule(items, inputs="x", targets="y", mask="ok", num_lanes=2, k1=2)
    with pytest.raises(InputError, match=r"no window of the training data has a target, .* make the mask true"):
        trainer(tmp_path, max_steps=3).fit(Plain(2), made)
    trainer(tmp_path, fast_dev_run=True).fit(Plain(2), made)


@pytest.mark.parametrize("options", [{"carry_state": False}, {"state_drop_probability": 0.1}])
def test_burn_in_needs_a_state_that_is_carried(options, tmp_path):
    with pytest.raises(InputError, match=r"burn_in=2 with model.(carry_state=False|state_drop_probability=0.1)"):
        trainer(tmp_path).fit(Policy(**options), data(burn_in=2))


def test_columns_of_a_dataset_are_sequences(tmp_path, capsys):
    items = episodes(9, 5)
    for split, some in (("train", items[:6]), ("validation", items[6:])):
        rows = {name: [item[name].tolist() for item in some] for name in items[0]}
        Dataset.from_dict(rows).to_parquet(tmp_path / "data" / f"{split}.parquet")
    made = SequenceLanesDataModule(path=str(tmp_path / "data"), load_options={"cache_dir": str(tmp_path)}, **OPTIONS)
    model, at = Policy(), trainer(tmp_path)
    at.fit(model, made)
    assert at.global_step > 4
    assert at.callback_metrics["val/loss"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "data.path=None: give a path, or datasets"),
        ({"train": [1], "path": "x"}, "data.path='x' with train"),
        ({"train": [1], "dtypes": "float33"}, "data.dtypes='float33': must be a torch dtype or its name"),
        ({"train": [1], "dtypes": {"x": "long64"}}, r"data.dtypes\['x'\]='long64'"),
        ({"train": [1], "dtypes": "int64"}, "data.dtypes=int64: .*name them, as in {'label': 'int64'}"),
        ({"train": [1], "num_lanes": 0}, "data.num_lanes=0"),
        ({"train": [1], "normalize": "no"}, "data.normalize='no': must be True or False"),
        ({"train": [1], "shuffle": 0}, "data.shuffle=0: must be True or False"),
        ({"train": [1], "lengths": {"validation": [3]}}, "data.lengths: no dataset 'validation' is given"),
        ({"train": [1], "lengths": [3]}, "data.lengths=.3.: must be a dictionary by split, such as"),
        ({"path": "x", "lengths": {"train": [3]}}, "data.lengths: no dataset 'train' is given"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SequenceLanesDataModule(**options)


def test_statistics_of_parts_are_those_of_the_whole():
    values = torch.randn(50, 3, dtype=torch.float64) * 4 + 1e6
    parts = [{"inputs": tuple(Moments.of(part))} for part in values.split([7, 1, 42])]
    mean, deviation = Normalization.from_moments(parts).statistics["inputs"]
    assert_close(mean, values.mean(0), rtol=1e-12, atol=0)
    assert_close(deviation, values.std(0, correction=0), rtol=1e-9, atol=0)


def test_shifted_targets_are_normalized_as_inputs():
    made = SequenceLanesDataModule([torch.tensor([1.0, 5.0, 9.0, 40.0])], shift=1, num_lanes=1, normalize=True)
    made.setup("fit")
    window = next(iter(made.train_dataloader())).windows[0]
    assert_close(window.inputs[0, 1:], window.targets[0, :-1])
    assert_close(window.inputs.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("carry_state", "burn_in"), [(True, 0), (True, 2), (False, 0)])
def test_predictions_say_of_which_sequence_of_the_test_split_they_are(carry_state, burn_in, tmp_path):
    class Predicting(Policy):
        window_loss = LitTBPTT.window_loss

        def predict_window(self, window, state):
            inputs = torch.cat([window.inputs["speed"], window.inputs["angle"][..., None]], -1)
            outputs, state = self.core(inputs, state[None].contiguous())
            return self.head(outputs), state[0]

    items = [item | {"known": np.arange(len(item["angle"])) % 3 > 0} for item in episodes(7, 3)]
    model, made = Predicting(carry_state=carry_state), data(test=items, mask="known", eval_num_lanes=3, burn_in=burn_in)
    batches = trainer(tmp_path).predict(model, made)
    outputs, mask, rows = (torch.cat([batch[name] for batch in batches], 1) for name in ("outputs", "mask", "rows"))
    for number, item in enumerate(items):
        here = rows[..., 0] == number
        inputs = {name: torch.from_numpy(item[name]).float()[None] for name in ("speed", "angle")}
        window = Window(inputs, None, static={"goal": torch.from_numpy(item["goal"])[None]})
        parts = window.pieces(4) if not carry_state else [window]
        expected = [model.predict_window(part, model.initial_state_of(window.static))[0][0] for part in parts]
        assert_close(outputs[here], torch.cat(expected).detach())
        assert rows[here][:, 1].tolist() == list(range(len(item["angle"])))
        assert mask[here].tolist() == [bool(known) and t >= burn_in for t, known in enumerate(item["known"])]
    padding = rows[..., 0] == -1
    assert padding.any()
    assert not rows[padding][:, 1].any()
    assert not mask[padding].any()
