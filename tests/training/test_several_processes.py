"""Several processes train as one would: the same data, gradients, states, and figures; also after a resume."""

import json
from itertools import chain

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from loops import fit as fit_regression
from processes import together
from tasks import Batches, Regression, windows_of
from torch.optim import SGD

from lit_tbptt import (
    GRU,
    AdaptiveHorizon,
    GradientHorizon,
    InputError,
    LitLanguageModel,
    RunCheckpoint,
    SequenceLanesDataModule,
    TextLanesDataModule,
)

LANES, K1, STEPS = 6, 5, 50
TEXTS = ["".join(chr(97 + (i * j) % 23) for j in range(i * i % 41)) for i in range(60)]
KINDS = {
    "strided": {"shuffle": True, "rotate_lanes": True},
    "streamed": {"streaming": True, "num_readers": 2, "shuffle": True},
    "one reader": {"streaming": True},
}
CASES = [
    *((kind, k2, True) for kind in KINDS for k2 in (None, 12)),
    ("strided", 12, False),
    ("streamed", None, False),
]


def write_corpus(folder):
    """Four shards to train on, of documents between nothing and 40 letters, and one to validate on."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for number in range(4):
        rows = [json.dumps({"text": text}) for text in TEXTS[number::4]]
        (corpus / f"train-{number}.jsonl").write_text("\n".join(rows) + "\n")
    (corpus / "valid.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS[3:20]) + "\n")
    return corpus


class Windows(Callback):
    """Keeps every window."""

    def __init__(self):
        self.seen = []

    def on_window_end(self, trainer, module, window):
        reset = torch.zeros(window.num_lanes, dtype=torch.bool) if window.reset is None else window.reset
        self.seen.append((window.inputs, window.targets, reset, window.mask_or_ones()))


def fit(folder, corpus, num_ranks, kind, k2, document_reset, max_steps=STEPS, resume=None, **training):
    """Trains in this process, one of `num_ranks`, and returns what it saw and what came out."""
    seed_everything(3, verbose=False)
    data = TextLanesDataModule(
        str(corpus),
        num_lanes=LANES,
        k1=K1,
        windows_per_batch=4,
        eval_num_lanes=2,
        document_reset=document_reset,
        **KINDS[kind],
    )
    module = LitLanguageModel(
        GRU(7, 2, learned_initial_state=True, dropout=training.pop("dropout", 0.0)),
        k1=K1,
        k2=k2,
        optimizer=lambda parameters: SGD(parameters, 0.1),
        **training,
    )
    callbacks = [Windows(), RunCheckpoint(every_n_steps=1000)]
    if kind == "strided" and k2:
        callbacks.append(GradientHorizon(every_n_steps=17, tokens_back=19))
    if kind == "strided" and k2 and not document_reset:
        callbacks.append(AdaptiveHorizon(0.3, max_k2=17, every_n_steps=9, num_places=2))
    trainer = Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp" if num_ranks > 1 else "auto",
        precision="64-true",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        log_every_n_steps=1,
        default_root_dir=folder,
        callbacks=callbacks,
    )
    trainer.fit(module, data, ckpt_path=resume)
    random = torch.rand(3)  # before Lightning seeds again
    trainer.validate(module, data, verbose=False)
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "windows": callbacks[0].seen,
        "epoch": trainer.current_epoch,
        "values": {name: float(value) for name, value in trainer.callback_metrics.items() if "second" not in name},
        "horizon": {path.name: path.read_text() for path in sorted(folder.glob("gradient_horizon/*.csv"))},
        "k2": module.truncation.k2,
        "random": random,
        "sums": torch.cat([module.evaluation._sums, module.evaluation_metrics.num_right[None]]),
    }


def fit_all(folder, corpus, num_ranks, max_steps=STEPS):
    """Trains every case; one that has been begun in the folder is continued."""
    found = {}
    for number, case in enumerate(CASES):
        run = folder / str(number)
        last = run / "checkpoints" / "last.ckpt"
        resume = last if last.exists() else None
        found[case] = fit(run, corpus, num_ranks, *case, max_steps, resume)
    return found


def joined(per_rank):
    """Puts the lanes of all processes below each other again."""
    return [
        tuple(torch.cat(parts) for parts in zip(*windows, strict=True))
        for windows in zip(*(found["windows"] for found in per_rank), strict=True)
    ]


def assert_same(per_rank, expected, tolerance):
    # Of every process its own; Lightning keeps metrics in float32 only.
    torch.testing.assert_close(sum(found["sums"] for found in per_rank), expected["sums"], rtol=1e-12, atol=0)
    for found in per_rank:
        for name, value in expected["weights"].items():
            torch.testing.assert_close(found["weights"][name], value, rtol=0, atol=tolerance)
        for name, value in expected["values"].items():
            assert found["values"][name] == pytest.approx(value, rel=1e-12), name
        assert found["epoch"] == expected["epoch"]
        assert found["k2"] == expected["k2"]
    curves = [
        [[float(cell) for row in text.split()[1:] for cell in row.split(",")] for text in found["horizon"].values()]
        for found in (expected, per_rank[0])
    ]
    assert len(curves[0]) == (2 if expected["horizon"] else 0)
    assert curves[1] == [pytest.approx(curve, rel=1e-7) for curve in curves[0]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    corpus = write_corpus(folder)
    return corpus, fit_all(folder, corpus, 1)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_so_many_processes_train_as_one(num_ranks, alone, tmp_path):
    corpus, expected = alone
    found = together(tmp_path, num_ranks, fit_all, tmp_path, corpus, num_ranks)
    assert expected["strided", 12, False]["k2"] not in (K1, 12)  # AdaptiveHorizon has chosen another one
    for case in CASES:
        per_rank = [results[case] for results in found]
        windows = joined(per_rank)
        assert len(windows) == STEPS
        assert all(map(torch.equal, chain(*windows), chain(*expected[case]["windows"]))), case
        assert_same(per_rank, expected[case], 1e-12)
        assert expected[case]["epoch"] > 0
        counts = zip(*([int(mask.sum()) for *_, mask in one["windows"]] for one in per_rank), strict=True)
        uneven = sum(len(set(some)) > 1 for some in counts)
        assert uneven > STEPS / 2 or not case[-1], "with resets the targets are to be uneven"


@pytest.mark.slow
def test_the_number_of_processes_may_change_at_every_resume(alone, tmp_path):
    corpus, expected = alone
    seen = {case: [] for case in CASES}
    for num_ranks, max_steps in ((1, 13), (2, 37), (1, 44), (3, STEPS)):
        found = together(tmp_path, num_ranks, fit_all, tmp_path, corpus, num_ranks, max_steps)
        for case in CASES:
            seen[case] += joined([results[case] for results in found])
    for case in CASES:
        assert len(seen[case]) == STEPS
        assert all(map(torch.equal, chain(*seen[case]), chain(*expected[case]["windows"]))), case
        assert_same([results[case] for results in found], expected[case], 1e-10)


def fit_stopped(folder, corpus, num_ranks):
    """Trains with dropout and dropped states, once without and once with a stop."""
    options = {"dropout": 0.3, "state_drop_probability": 0.2, "recompute_every": 3}
    whole = fit(folder / "whole", corpus, num_ranks, "strided", 12, True, **options)
    fit(folder / "stopped", corpus, num_ranks, "strided", 12, True, 17, **options)
    last = folder / "stopped" / "checkpoints" / "last.ckpt"
    return whole, fit(folder / "stopped", corpus, num_ranks, "strided", 12, True, STEPS, last, **options)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_every_process_continues_its_own_random_numbers(num_ranks, tmp_path):
    found = together(tmp_path, num_ranks, fit_stopped, tmp_path, write_corpus(tmp_path), num_ranks)
    for whole, resumed in found:
        assert torch.equal(whole["random"], resumed["random"])
        assert all(torch.equal(value, resumed["weights"][name]) for name, value in whole["weights"].items())
        assert whole["values"] == resumed["values"]
    assert len({tuple(whole["random"].tolist()) for whole, _ in found}) == num_ranks


def of_a_part_of_the_model(folder, corpus):
    with pytest.raises(InputError, match=r"trainer\.strategy=ModelParallelStrategy: it gives every process a part"):
        Trainer(strategy=ModelParallelStrategy(), accelerator="cpu", devices=1, logger=False, max_steps=1).fit(
            LitLanguageModel(GRU(7), k1=K1), TextLanesDataModule(str(corpus), num_lanes=2, k1=K1)
        )
    return True


def test_a_strategy_that_shards_the_model_is_refused(tmp_path):
    assert together(tmp_path, 1, of_a_part_of_the_model, tmp_path, write_corpus(tmp_path)) == [True]


def with_too_few_lanes(folder, corpus):
    data = TextLanesDataModule(str(corpus), num_lanes=1, k1=K1)
    with pytest.raises(InputError, match=r"data\.num_lanes=1 with 2 processes: each needs a lane to train on"):
        Trainer(strategy="ddp", accelerator="cpu", devices=2, logger=False, max_steps=1).fit(
            LitLanguageModel(GRU(7), k1=K1), data
        )
    return fit_masked(2)


class Masked(Regression):
    def window_loss(self, window, state):
        outputs, state = self.core(window.inputs.unsqueeze(-1), state.unsqueeze(0).contiguous())
        errors = (self.head(outputs).squeeze(-1) - window.targets).square()[window.mask_or_ones()]
        return errors.sum(), errors.numel(), state.squeeze(0)


def fit_masked(num_ranks):
    """Trains on two sequences, of which the first has targets in windows 0 and 3, the second in 3 and 4 of six."""
    generator, places = torch.Generator().manual_seed(7), torch.arange(12)
    items = [
        {"x": torch.randn(12, generator=generator), "y": torch.randn(12, generator=generator), "ok": heard}
        for heard in (torch.isin(places, torch.tensor([1, 6])), torch.isin(places, torch.tensor([7, 8, 9])))
    ]
    data = SequenceLanesDataModule(
        items, inputs="x", targets="y", mask="ok", num_lanes=2, k1=2, windows_per_batch=3, dtypes="float64"
    )
    torch.manual_seed(3)
    module, steps = Masked(k1=2, lr=0.1), []
    callback = Callback()
    callback.on_window_end = lambda trainer, module, window: steps.append(module.position.step)
    options = {"devices": num_ranks, "strategy": "ddp" if num_ranks > 1 else "auto", "callbacks": [callback]}
    fit_regression(module, data, max_epochs=2, **options)
    return steps, {name: value.numpy() for name, value in module.state_dict().items()}


def test_two_processes_need_a_lane_each_and_pass_over_the_same_windows(tmp_path):
    found = together(tmp_path, 2, with_too_few_lanes, tmp_path, write_corpus(tmp_path))
    steps, expected = fit_masked(1)
    assert steps == [1, 1, 1, 2, 3, 3, 4, 4, 4, 5, 6, 6]
    for steps_there, weights in found:
        assert steps_there == steps
        for name, value in expected.items():
            np.testing.assert_allclose(weights[name], value, 0, 1e-12)


class NeverOfNothing(Regression):
    def window_loss(self, window, state):
        assert window.num_lanes > 0
        return super().window_loss(window, state)


def test_a_process_without_a_lane_evaluates_nothing():
    nothing = torch.zeros(0, 13)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    with pytest.warns(UserWarning, match="val/loss is nan, because no target was scored"):
        trainer.validate(NeverOfNothing(k1=5), Batches(windows_of(nothing, nothing, 5)), verbose=False)
    assert trainer.callback_metrics["val/loss"].isnan()
