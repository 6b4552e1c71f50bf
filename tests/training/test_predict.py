"""`trainer.predict`: the log-probability of every token, with the state carried on; what a general task predicts."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from letters import corpus
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from loops import batches, sequence
from processes import together
from tasks import Batches, Regression, windows_of
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lit_tbptt import LSTM, InputError, LitLanguageModel, TextLanesDataModule, TextModel, Window
from lit_tbptt.data.text.tokenizers import ByteTokenizer

# 1 to 41 letters, 341 tokens with every <eos>.
TEXTS = ["".join(chr(97 + i * j % 23) for j in range(1 + i * i % 41)) for i in range(17)]
EXACT = {"rtol": 0, "atol": 1e-10}


def language_model(**training):
    torch.manual_seed(3)
    model = LitLanguageModel(LSTM(9, 2, dropout=0.3), k1=5, output_dropout=0.4, **training)
    model._build(ByteTokenizer())
    return model


def text_data(**options):
    splits = {"train": corpus(*TEXTS[:7]), "validation": corpus(*TEXTS[3:6]), "test": corpus(*TEXTS)}
    return TextLanesDataModule(splits, **({"num_lanes": 4, "eval_num_lanes": 3, "k1": 5} | options))


def trainer(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", **({"precision": "64-true", "enable_checkpointing": False} | quiet | options))


def joined(predictions):
    """The batches of a prediction as one, `[lane, time]`."""
    return {name: torch.cat([each[name] for each in predictions], 1) for name in predictions[0]}


def in_one_call(model, ids, before=256):
    """The log-probability of each token by the definition, over one lane."""
    network = model.language_model.eval()
    inputs = torch.tensor([[before, *ids[:-1]]])
    logits, _ = network(inputs, network.initial_state(1))
    return torch.log_softmax(logits[0], -1).gather(1, torch.tensor(ids)[:, None])[:, 0].detach()


@pytest.mark.parametrize("num_lanes", [1, 3, 7])
def test_every_token_of_the_test_split_is_predicted_once_in_order(num_lanes):
    model, data = language_model(), text_data(eval_num_lanes=num_lanes, windows_per_batch=3)
    predictions = trainer().predict(model, data)
    lanes = joined(predictions)
    ids = data.splits["test"].ids.tolist()
    starts = [lane * len(ids) // num_lanes for lane in range(num_lanes + 1)]
    expected = [in_one_call(model, ids[start:end], ids[start - 1] if start else 256) for start, end in pairwise(starts)]
    assert len(predictions) == -(-max(map(len, expected)) // 15)
    assert lanes["mask"].sum(1).tolist() == [len(lane) for lane in expected]
    assert lanes["targets"][lanes["mask"]].tolist() == ids
    assert lanes["log_probabilities"].dtype == torch.float64
    assert_close(lanes["log_probabilities"][lanes["mask"]], torch.cat(expected), **EXACT)
    assert not lanes["log_probabilities"][~lanes["mask"]].any()


@pytest.mark.parametrize("streaming", [False, True])
def test_documents_that_begin_with_a_reset_are_predicted_one_by_one(streaming):
    model = language_model()
    data = text_data(document_reset=True, streaming=streaming, eval_num_lanes=1 if streaming else 3)
    lanes = joined(trainer().predict(model, data))
    scores = list(TextModel(model.language_model, ByteTokenizer()).scores(TEXTS))
    assert lanes["targets"][lanes["mask"]].tolist() == torch.cat([score.tokens for score in scores]).tolist()
    assert_close(lanes["log_probabilities"][lanes["mask"]], -torch.cat([score.nats for score in scores]), **EXACT)


@pytest.mark.parametrize("carry_state", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"eval_num_lanes": 1}, {"document_reset": True}, {"streaming": True, "eval_num_lanes": 2}],
    ids=lambda options: ", ".join(options) or "strided",
)
def test_predictions_sum_to_the_loss_of_test(options, carry_state):
    model, data = language_model(carry_state=carry_state), text_data(**options)
    predictions = trainer().predict(model, data)
    tested = {}
    model.log_dict = lambda values, **options: tested.update(values)  # Lightning rounds to float32
    trainer().test(model, data, verbose=False)
    total = sum(each["log_probabilities"].sum().item() for each in predictions)
    assert total == pytest.approx(-tested["test/nats_per_token"] * tested["test/num_targets"], abs=1e-10)
    assert sum(int(each["mask"].sum()) for each in predictions) == tested["test/num_targets"]


@pytest.mark.parametrize("carry_state", [False, True])
def test_one_document_in_one_lane_is_predicted_as_it_is_scored(carry_state):
    model = language_model(carry_state=carry_state)
    data = TextLanesDataModule({"test": [TEXTS[9]]}, tokenizer=model.tokenizer, eval_num_lanes=1, k1=5)
    found = joined(trainer().predict(model, data))
    (score,) = TextModel(model.language_model, model.tokenizer, k1=5, carry_state=carry_state).scores([TEXTS[9]])
    assert found["mask"].all()
    assert found["targets"][0].tolist() == score.tokens.tolist()
    assert_close(found["log_probabilities"][0], -score.nats, **EXACT)


def test_a_checkpoint_predicts_what_its_model_does_and_training_is_not_touched(tmp_path):
    model, data = language_model(), text_data()
    trained = trainer(max_steps=11)
    trained.fit(model, data)
    trained.save_checkpoint(tmp_path / "trained.ckpt", weights_only=False)
    position, carry, random = dict(vars(model.position)), model.carry.describe(), torch.get_rng_state()
    first, again = (joined(trained.predict(model, data)) for _ in range(2))
    assert_close(again, first, rtol=0, atol=0)
    assert_close(model.carry.describe(), carry, rtol=0, atol=0)
    assert vars(model.position) == position
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    fresh = LitLanguageModel(LSTM(9, 2, dropout=0.3), k1=5)
    of_file = trainer().predict(fresh, data, ckpt_path=tmp_path / "trained.ckpt", weights_only=True)
    assert_close(joined(of_file), first, rtol=0, atol=0)


class Writing(BasePredictionWriter):
    """Writes every batch, and all at the end."""

    def __init__(self, folder):
        super().__init__("batch_and_epoch")
        self.folder = folder

    def write_on_batch_end(self, trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
        torch.save(prediction, self.folder / f"{batch_idx}.pt")

    def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        torch.save(predictions, self.folder / "all.pt")


def test_a_callback_writes_predictions_as_they_are_made(tmp_path):
    model, data = language_model(), text_data(windows_per_batch=2)
    expected = trainer().predict(model, data)
    assert trainer(callbacks=[Writing(tmp_path)]).predict(model, data, return_predictions=False) is None
    written = [torch.load(tmp_path / f"{number}.pt") for number in range(len(expected))]
    assert len(expected) == len(list(tmp_path.iterdir())) - 1 == 12
    assert_close(written, expected, rtol=0, atol=0)
    assert_close(torch.load(tmp_path / "all.pt"), expected, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_log_probabilities_have_at_least_single_precision(precision):
    model, data = language_model(), text_data()
    exact = joined(trainer().predict(model, data))["log_probabilities"]
    found = joined(trainer(precision=precision).predict(model.float(), data))["log_probabilities"]
    assert found.dtype == torch.float32
    assert_close(found.double(), exact, rtol=0, atol=1e-5 if precision == "32-true" else 0.1)


def predict_on_one_of(num_ranks, num_lanes):
    options = {"devices": num_ranks, "strategy": "ddp" if num_ranks > 1 else "auto"}
    predictions = trainer(**options).predict(language_model(), text_data(eval_num_lanes=num_lanes))
    return [each and {name: part.numpy() for name, part in each.items()} for each in predictions]


def test_every_process_predicts_for_its_own_lanes(tmp_path):
    expected = predict_on_one_of(1, 3)
    first, second = together(tmp_path, 2, predict_on_one_of, 2, 3)
    assert [each["mask"].shape[0] for each in (*first, *second)] == [2] * len(first) + [1] * len(second)
    for whole, *parts in zip(expected, first, second, strict=True):
        for name in whole:
            np.testing.assert_allclose(np.concatenate([part[name] for part in parts]), whole[name], 0, 1e-12)
    expected, (first, second) = predict_on_one_of(1, 1), together(tmp_path, 2, predict_on_one_of, 2, 1)
    assert second == [None] * len(expected)
    for name in expected[0]:
        np.testing.assert_allclose(first[0][name], expected[0][name], 0, 1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"has no test split, only train, validation; to predict other texts, give path=\{'test': texts\}"),
        ({"streaming": True}, r"has no test split, only train; to predict"),
    ],
)
def test_what_is_predicted_is_the_test_split(options, message):
    with pytest.raises(InputError, match=message):
        trainer().predict(language_model(), TextLanesDataModule(corpus(*TEXTS), num_lanes=2, **options))


class Outputs(Regression):
    """Predicts its outputs."""

    def predict_window(self, window, state):
        outputs, state = self.core(window.inputs.unsqueeze(-1), state.unsqueeze(0).contiguous())
        return self.head(outputs), state.squeeze(0)

    def at_once(self, inputs, targets):
        """The outputs by the definition, over whole lanes from the initial state."""
        with torch.no_grad():
            return self.predict_window(Window(inputs, targets), self.initial_state(len(inputs)))[0]


class Residuals(Outputs):
    """Predicts something else, as a pytree."""

    def prediction_window(self, window, state):
        outputs, state = self.predict_window(window, state)
        return {"residuals": [outputs.squeeze(-1) - window.targets]}, state


def test_another_task_predicts_its_outputs_with_the_state_carried_on():
    module, (inputs, targets) = Outputs(k1=5).double(), sequence()
    expected = module.at_once(inputs, targets)
    found = trainer().predict(module, batches(5, 4))
    assert [part.shape for part in found] == [(3, 20, 1)] * 3 + [(3, 5, 1)]
    assert_close(torch.cat(found, 1), expected, **EXACT)
    expected[1:2, 30:] = module.at_once(inputs[1:2, 30:], targets[1:2, 30:])
    assert_close(torch.cat(trainer().predict(module, batches(5, 4, resets=[(6, 1)])), 1), expected, **EXACT)
    other = Residuals(k1=5).double()
    other.load_state_dict(module.state_dict())
    predicted = trainer().predict(other, batches(5, 4, resets=[(6, 1)]))
    residuals = torch.cat([each["residuals"][0] for each in predicted], 1)
    assert_close(residuals, expected.squeeze(-1) - targets, **EXACT)


def test_every_loader_begins_from_the_initial_state():
    module, (inputs, targets) = Outputs(k1=5).double(), sequence()
    expected = [module.at_once(inputs[:2], targets[:2]), module.at_once(inputs, targets)]
    # No window says that a lane is reset.
    loaders = [Batches(list(Window(inputs[:n], targets[:n]).pieces(5)), 4) for n in (2, 3)]
    found = trainer().predict(module, loaders)
    assert_close([torch.cat(parts, 1) for parts in found], expected, **EXACT)


def test_without_carried_state_every_window_is_predicted_from_the_initial_state():
    module, (inputs, targets) = Outputs(k1=5, carry_state=False).double(), sequence()
    (found,) = trainer().predict(module, Batches(windows_of(inputs, targets, 65)))
    expected = [module.at_once(each.inputs, each.targets) for each in windows_of(inputs, targets, 5)]
    assert_close(found, torch.cat(expected, 1), **EXACT)


class WholeWindows(Outputs):
    def predict_window(self, window, state):
        outputs, state = super().predict_window(window, state)
        return outputs.mean(1), state


class Numbers(Outputs):
    def prediction_window(self, window, state):
        return [3.5], state


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        (Regression, batches(5), r"Regression must define predict_window\(window, state\)"),
        (WholeWindows, batches(5), r"3 lanes and 5 time steps has a tensor of \(3, 1\) in it"),
        (Numbers, batches(5), "has a float in it"),
        (Outputs, DataLoader(torch.zeros(4, 3)), "the data give a Tensor where a Batch of windows is expected"),
    ],
)
@pytest.mark.filterwarnings("ignore:The 'predict_dataloader' does not have many workers")
def test_what_cannot_be_predicted_is_refused(task, data, message):
    with pytest.raises(InputError, match=message):
        trainer().predict(task(k1=5), data)
