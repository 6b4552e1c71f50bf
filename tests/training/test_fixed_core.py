"""A core without parameters, EchoState, in a language model: the rest is trained by gradient, on several ranks too."""

import pytest
from command_line import RUN, SMALL_RUN, curve, last, trained
from lightning.pytorch import Trainer, seed_everything
from processes import together
from torch.testing import assert_close

from lit_tbptt import EchoState, LitLanguageModel, TextLanesDataModule
from lit_tbptt.cli import main
from lit_tbptt.text_model import TextModel

TEXTS = ["".join(chr(97 + (i * j) % 23) for j in range(i * i % 41)) for i in range(60)]


def test_bytes_from_the_command_line(words_folder, in_tmp_path, capfd):
    core = ["--model.core=EchoState", "--model.core.hidden_size=70", "--model.core.input_size=9"]
    main(["fit", f"--data.path={words_folder}", *SMALL_RUN, *core, "--trainer.max_steps=150", "--optimizer.lr=0.01"])
    losses = [float(row["train/nats_per_token"]) for row in trained(curve())]
    assert losses[-1] < 0.6 * losses[0] < 0.6 * 5.6  # about ln 257
    weights = last()["state_dict"]
    for name, value in EchoState(70, input_size=9).state_dict().items():
        assert_close(weights[f"model.core.{name}"], value, rtol=0, atol=0)  # no step, nor weight decay
    main(["export", f"--ckpt_path={RUN}/checkpoints/last.ckpt", "model"])
    expected = TextModel.from_checkpoint(last()).generate("w1 w2", 20)
    assert TextModel.from_pretrained("model").generate("w1 w2", 20) == expected


def fit(num_ranks):
    seed_everything(3, verbose=False)
    data = TextLanesDataModule(TEXTS, num_lanes=6, k1=5, windows_per_batch=4, val_fraction=0.2)
    module = LitLanguageModel(EchoState(31, input_size=8), k1=5, k2=9)
    strategy = "ddp" if num_ranks > 1 else "auto"
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(
        max_steps=30, accelerator="cpu", devices=num_ranks, strategy=strategy, precision="64-true", **quiet
    )
    trainer.fit(module, data)
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.slow
def test_two_ranks_train_as_one_does(tmp_path):
    (alone,) = together(tmp_path, 1, fit, 1)
    for weights in together(tmp_path, 2, fit, 2):
        assert_close(weights, alone, rtol=1e-9, atol=1e-12)
