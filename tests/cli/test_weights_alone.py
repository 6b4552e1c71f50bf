"""Runs that begin with the weights of another."""

from pathlib import Path

import pytest
import torch
from command_line import FIRST_RUN, RUN, last, refused

from lit_tbptt.cli import TextCLI, main
from lit_tbptt.files.checkpoint import read_checkpoint


def test_a_new_run_from_weights_alone(first_run, words_folder):
    main(first_run)
    cli = TextCLI(
        [
            "fit",
            f"--data.path={words_folder}",
            f"--init_from={RUN}/checkpoints/last.ckpt",
            "--model.k1=7",
            "--data.num_lanes=2",
            "--data.eval_num_lanes=2",
            "--optimizer=SGD",
            "--optimizer.lr=0",
            "--trainer.max_steps=3",
            "--trainer.accelerator=cpu",
        ]
    )
    assert (cli.trainer.global_step, Path(cli.trainer.log_dir).name) == (3, "version_1")
    for name, value in last()["state_dict"].items():
        assert torch.equal(cli.model.state_dict()[name], value)
    source = f"--init_from={RUN}/checkpoints/last.ckpt"
    assert "model.core.hidden_size=10" in refused(*first_run, source, "--model.core.hidden_size=10")
    assert "vocabulary of" in refused("fit", f"--data.path={words_folder}", "--data.tokenizer=char", source)


@pytest.mark.slow
def test_a_run_from_weights_is_continued_with_their_tokenizer(first_run, words_folder):
    main([*first_run, "--run_name=a"])
    small = [option for option in FIRST_RUN if not option.startswith(("--data.tokenizer", "--lr_scheduler"))]
    main(
        [
            "fit",
            f"--data.path={words_folder}",
            *small,
            "--run_name=b",
            "--init_from=runs/default/a/checkpoints/last.ckpt",
            "--trainer.max_steps=3",
        ]
    )
    main(["fit", "--ckpt_path=last", "--run_name=b", "--trainer.max_steps=5"])
    assert read_checkpoint("runs/default/b/checkpoints/last.ckpt")["lit_tbptt"]["tokenizer"]["name"] == "word"
