"""Options that change when a run is continued, and those that cannot."""

import math
import re

import pytest
from command_line import curve, last, refused, trained

from lit_tbptt.cli import main


@pytest.mark.slow
def test_a_schedule_that_ends_with_the_run_ends_with_the_longer_run(first_run, capfd):
    main([*first_run, "--lr_scheduler.num_steps=null"])
    capfd.readouterr()
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=30"])
    assert "the learning rates to come change as well" in capfd.readouterr().out
    rates = [float(row["train/lr"]) for row in trained(curve())]
    assert rates[-1] > 0
    assert len(rates) == 10


@pytest.mark.slow
def test_a_learning_rate_changes_under_its_schedule(first_run):
    main([*first_run, "--lr_scheduler.warmup_steps=0"])
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=31", "--optimizer.lr=0.008"])
    rates = {int(row["step"]): float(row["train/lr"]) for row in trained(curve())}
    # Half a cosine over 40 steps; the logged rate is that of the step to come.
    for step, peak in ((18, 0.004), (21, 0.008), (30, 0.008)):
        assert rates[step] == pytest.approx(peak * 0.5 * (1 + math.cos(math.pi * step / 40)))


def test_optimizer_options_can_change_on_a_resume_and_its_class_cannot(first_run):
    main([*first_run, "--lr_scheduler=null"])
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=24", "--optimizer.lr=1e-5", "--optimizer.weight_decay=0.5"])
    group = last()["optimizer_states"][0]["param_groups"][0]
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(1e-5), 0.5)
    options = ["--optimizer=SGD", "--optimizer.lr=1", "--trainer.max_steps=26"]
    message = refused("fit", "--ckpt_path=last", *options)
    assert re.search(r"optimizer=torch.optim.SGD, where .* has torch.optim.AdamW", message)


# What a resume cannot keep, and the message.
KEPT = {
    "--data.num_lanes=4": "data.num_lanes: 4, where .* has 3",
    "--model.k1=6": "k1=6, where .* has k1=5",
    "--data.windows_per_batch=3": "data.windows_per_batch: 3, where .* has 2",
    "--data.tokenizer=byte": "data.tokenizer='byte' with a checkpoint that was trained with 'word'",
    "--model.core.hidden_size=11": r"model\.core\.hidden_size=11 .* trained with 9",
    "--model.tie_weights=true": "model.tie_weights=True .* trained with False",
    "--trainer.precision=64": r"trainer.precision=64-true makes .*float64, where .* has torch.float32",
}


def test_what_a_resume_cannot_keep_is_an_error_that_names_both(first_run):
    main(first_run)
    for change, message in KEPT.items():
        assert re.search(message, refused("fit", "--ckpt_path=last", change, "--trainer.max_steps=22"))


def test_other_data_cannot_be_resumed_on(first_run, words_folder):
    main([*first_run, "--data.tokenizer=byte"])
    (words_folder / "train.txt").write_text((words_folder / "train.txt").read_text().replace("w7", "w4", 1))
    message = refused("fit", "--ckpt_path=last", "--trainer.max_steps=22")
    assert re.search("data.path: .*, 266 tokens, .* where .* has .*, 266 tokens", message)


def test_what_is_not_taken_from_a_checkpoint_is_told(first_run, capfd):
    main([*first_run, "--trainer.profiler=simple"])
    capfd.readouterr()
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=21"])
    said = capfd.readouterr().out
    assert "trainer.profiler: simple in the checkpoint, None now" in said
    assert "trainer.callbacks" not in said
