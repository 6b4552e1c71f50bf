"""What new users get wrong, as `benchmarks/mistakes.py` found it."""

import pytest
from command_line import refused

# Options that other training scripts have, and what the message names instead.
ELSEWHERE = {
    "--batch_size=32": "--data.num_lanes",
    "--lr=0.1": "--optimizer.lr",
    "--learning-rate=0.1": "--optimizer.lr",
    "--epochs=3": "--trainer.max_epochs",
    "--max_steps=3": "--trainer.max_steps",
    "--gpus=1": "--trainer.devices",
    "--trainer.gpus=1": "--trainer.devices",
    "--seed=7": "--seed_everything",
    "--bptt=35": "--model.k1",
    "--seq_len=35": "--model.k1",
    "--hidden_size=9": "--model.core.hidden_size",
    "--model.hidden_size=9": "--model.core.hidden_size",
    "--output_dir=out": "--runs_dir",
    "--resume=last": "--ckpt_path",
    "--clip=1": "--model.clip_norm",
    "--data.batch_size=8": "--data.num_lanes",
}


@pytest.mark.parametrize("given", ELSEWHERE)
def test_an_option_of_another_library_is_explained_by_ours(given, in_tmp_path):
    name = given.split("=")[0]
    assert refused("fit", given) == f"error: {name}: there is no such option; did you mean {ELSEWHERE[given]}?"
