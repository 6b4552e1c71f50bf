"""The subcommands, their options, and what they refuse."""

import csv
import re
from pathlib import Path

import pytest
import torch
import yaml
from command_line import SMALL_RUN, refusal_of

from lit_tbptt import LitLanguageModel
from lit_tbptt.cli import TextCLI, main

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def run(words_folder, capfd):
    """Runs a subcommand on the small corpus and returns what it printed."""

    def run(subcommand, *options, small=SMALL_RUN, path=words_folder):
        main([subcommand, f"--data.path={path}", *small, *options])
        return capfd.readouterr().out

    return run


def test_fit_trains_evaluates_and_leaves_a_run_folder(run, tmp_path):
    printed = run("fit", "--trainer.max_steps=33", "--trainer.val_check_interval=5", "--trainer.log_every_n_steps=4")
    for text in ("bits_per_byte", "validation", "gzip -9", "xz", "a sample:", "runs/default/version_0", "generate"):
        assert text in printed
    folder = tmp_path / "runs" / "default" / "version_0"
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["k1"] == 5
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    trained = [row for row in rows if row["train/bits_per_byte"]]
    assert [int(row["step"]) for row in trained] == [*range(4, 33, 4), 33]
    # The split ends with a short window, so 33 windows of 3 lanes have a little less than 33 * 15 targets.
    assert 33 * 15 - 60 < int(trained[-1]["tokens"]) <= 33 * 15
    assert any(row["val/perplexity"] for row in rows)
    assert list(folder.glob("by_step/events.out.tfevents.*"))
    assert list(folder.glob("by_tokens/events.out.tfevents.*"))
    printed = run("fit", "--trainer.max_steps=1", "--trainer.limit_test_batches=0")
    assert "a sample:" in printed
    assert "gzip" not in printed
    assert (folder.parent / "version_1").is_dir()


@pytest.fixture
def checkpoint(run):
    run("fit", "--data.tokenizer=word", "--trainer.max_steps=20", "--trainer.precision=64-true")
    return "runs/default/version_0/checkpoints/last.ckpt"


def nats(printed):
    (line,) = [line for line in printed.splitlines() if line.startswith("nats_per_token")]
    return float(line.split()[1])


def evaluated(words_folder, checkpoint, *options):
    cli = TextCLI(["validate", f"--ckpt_path={checkpoint}", "--trainer.precision=64-true", *options])
    metrics = cli.trainer.callback_metrics
    nats, num_targets = cli.model.evaluation._sums.tolist()  # in float64, where the metrics logged are in float32
    assert num_targets == metrics["val/num_targets"]
    return nats / num_targets, num_targets


def test_validation_is_the_same_however_it_is_cut_and_scores_every_target(words_folder, checkpoint):
    lines = (words_folder / "valid.txt").read_text()
    targets = len(lines.split()) + lines.count("\n")
    found = [evaluated(words_folder, checkpoint, f"--data.windows_per_batch={n}") for n in (1, 3, 8)]
    assert [count for _, count in found] == [targets] * 3
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-12)
    assert found[2][0] == pytest.approx(found[0][0], abs=1e-12)
    for lanes in range(1, 10):
        assert evaluated(words_folder, checkpoint, f"--data.eval_num_lanes={lanes}")[1] == targets


def test_evaluation_and_text_from_a_checkpoint_alone(run, checkpoint, words_folder, capfd):
    capfd.readouterr()
    for subcommand in ("validate", "test"):
        main([subcommand, f"--ckpt_path={checkpoint}"])
        assert 0 < nats(capfd.readouterr().out) < 5
    (words_folder / "train.txt").unlink()
    options = ["generate", f"--ckpt_path={checkpoint}", "--num_tokens=20", "--temperature=0.9", "--top_k=4"]
    main([*options, '--prompt=["w1 w2", "w3"]', "--seed=3"])
    first = capfd.readouterr().out
    main([*options, '--prompt=["w1 w2", "w3"]', "--seed=3"])
    assert capfd.readouterr().out == first
    main([*options, '--prompt=["w1 w2", "w3"]', "--seed=4"])
    assert capfd.readouterr().out != first
    assert first.startswith("w1 w2")
    model = LitLanguageModel.load_from_checkpoint(checkpoint)
    assert model.generate(["w1 w2"], 20, 0.9, 4, seed=3)[0] in first


def test_the_optimizer_and_the_schedule_are_what_is_asked_for(words_folder):
    arguments = [f"--data.path={words_folder}", *SMALL_RUN, "--trainer.fast_dev_run=true"]
    cli = TextCLI(
        [
            "fit",
            *arguments,
            "--optimizer=SGD",
            "--optimizer.lr=20",
            "--model.clip_norm=0.25",
            "--lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
            "--lr_scheduler.monitor=val/nats_per_token",
            "--model.core=GRU",
            "--model.core.num_layers=2",
            "--model.core.hidden_size=13",
        ]
    )
    assert isinstance(cli.trainer.optimizers[0], torch.optim.SGD)
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == 20
    assert cli.model._schedules[0].monitor == "val/nats_per_token"
    assert type(cli.model.language_model.core).__name__ == "GRU"
    assert cli.model.language_model.core.num_layers == 2
    assert cli.model.clip_norm == 0.25


def test_an_optimizer_that_is_chosen_has_its_own_defaults(first_run):
    cli = TextCLI([*first_run, "--optimizer=AdamW", "--optimizer.lr=0.01", "--trainer.max_steps=1"])
    group = cli.trainer.optimizers[0].param_groups[0]
    assert (group["lr"] > 0, group["betas"], bool(group["fused"])) == (True, (0.9, 0.999), True)
    cli = TextCLI([*first_run, "--optimizer.lr=0.01", "--trainer.max_steps=1"])
    assert tuple(cli.trainer.optimizers[0].param_groups[0]["betas"]) == (0.9, 0.99)


def test_the_progress_bar_can_be_switched_off(first_run, capfd):
    main([*first_run, "--trainer.enable_progress_bar=false", "--trainer.max_steps=3"])
    assert "step/s" not in capfd.readouterr().err


@pytest.mark.parametrize("config", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_runs(config, words_folder):
    settings = yaml.safe_load(config.read_text())
    lengths = ["mean=4", "least=2"] if "window_lengths" in settings["data"] else []
    small = ["--model.core.hidden_size=8"] if "hidden_size" in settings["model"]["core"]["init_args"] else []
    cli = TextCLI(
        [
            "fit",
            f"--config={config}",
            f"--data.path={words_folder}",
            "--data.name=null",
            "--data.num_lanes=3",
            "--data.eval_num_lanes=2",
            *small,
            "--model.k1=5",
            "--trainer.max_steps=5",
            "--trainer.accelerator=cpu",
            "--trainer.log_every_n_steps=1",
            *(f"--data.window_lengths.{each}" for each in lengths),
        ]
    )
    assert cli.trainer.global_step == 5
    assert Path(cli.trainer.log_dir) == Path("runs") / config.stem / "version_0"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["fit", "--help"], ["fit", "--model.core.help", "LSTM"], ["generate", "--help"]]
)
def test_help_reads_like_documentation(arguments, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    printed = capfd.readouterr().out
    expected = {
        "LSTM": "Probability of dropping a feature between layers",
        "fit": "Parallel sequences in training",
        "generate": "The same seed gives the same text",
        "--help": "generate",
    }
    assert next(text for key, text in expected.items() if key in arguments) in printed


BAD = {
    "no such path": (["--data.path=no-such/corpus"], "data.path='no-such/corpus'"),
    "no such column": (["--data.text_column=body"], "data.text_column='body'"),
    "fewer tokens than lanes": (["--data.num_lanes=5000"], "data.num_lanes=5000"),
    "k1": (["--model.k1=0"], "k1=0"),
    "k2": (["--model.k2=4"], "k2=4 with k1=5"),
    "num_lanes": (["--data.num_lanes=0"], "data.num_lanes=0"),
    "no tokenizer": (["--data.tokenizer=train.txt"], "data.tokenizer='train.txt'"),
    "clipping": (["--trainer.gradient_clip_val=1"], "trainer.gradient_clip_val=1: .*set model.clip_norm"),
    "accumulation": (["--trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches=2.*data.num_lanes"),
    "no steps": (
        ["--trainer.max_steps=-1", "--trainer.max_epochs=1", "--data.streaming=true"],
        "lr_scheduler.num_steps is not given",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_before_any_training(case, run, capfd):
    options, message = BAD[case]
    assert re.search(message, refusal_of(run, "fit", *options))
    assert "train:" not in capfd.readouterr().err


def test_text_that_is_empty_or_not_utf8_is_refused_before_training(run, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    assert "is empty" in refusal_of(run, "fit", path=tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1") * 100)
    assert "latin.txt: byte 3 is not UTF-8" in refusal_of(run, "fit", path=tmp_path / "latin.txt")
    run("fit", "--data.load_options.encoding_errors=replace", "--trainer.max_steps=1", path=tmp_path / "latin.txt")


def test_a_checkpoint_that_is_not_there_or_broken_is_named(run, tmp_path):
    assert "no such file" in refusal_of(run, "test", "--ckpt_path=missing.ckpt")
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04 nothing")
    assert "broken.ckpt" in refusal_of(run, "test", "--ckpt_path=broken.ckpt")
    assert "needs a checkpoint" in refusal_of(run, "test")


def test_a_run_that_diverges_names_the_last_good_checkpoint(run):
    message = refusal_of(
        run,
        "fit",
        "--optimizer=SGD",
        "--optimizer.lr=3e38",
        "--model.clip_norm=null",
        "--lr_scheduler=null",
        "--trainer.max_steps=50",
        "--trainer.val_check_interval=1",
        "--trainer.log_every_n_steps=10",
    )
    assert "the training loss is" in message
    assert "a learning rate of about 3e+38" in message


@pytest.mark.parametrize("precision", ["bf16-mixed", "64"])
def test_the_defaults_train_in_every_precision(precision, words_folder, in_tmp_path):
    """The default job's optimizer is fused, and its gradients are clipped."""
    options = ["--model.core.hidden_size=9", "--trainer.max_steps=6", f"--trainer.precision={precision}"]
    cli = TextCLI(["fit", f"--data.path={words_folder}", *SMALL_RUN, *options, "--trainer.val_check_interval=4"])
    assert (cli.trainer.optimizers[0].defaults["fused"], cli.model.clip_norm) == (True, 1.0)
    assert cli.trainer.global_step == 6
