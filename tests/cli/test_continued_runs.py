"""Runs from the command line: where they live, how they are continued, and what they refuse."""

import math
import os
import pickle
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from command_line import FIRST_RUN, RUN, curve, equal, last, refused, trained

from lit_tbptt import InputError, LitLanguageModel, RecurrentCore
from lit_tbptt.cli import LitCLI, main
from lit_tbptt.files.checkpoint import read_checkpoint, write_checkpoint

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def test_a_run_is_continued_in_its_own_folder_with_the_settings_it_had(first_run, tmp_path, monkeypatch, capfd):
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    main([*first_run, "--trainer.max_steps=31"])
    whole, whole_curve = last(), curve()
    monkeypatch.chdir(tmp_path)
    main(first_run)
    capfd.readouterr()
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=31"])
    assert "trainer.max_steps: 20 in the checkpoint, 31 now" in capfd.readouterr().out
    equal(last(), whole)
    assert trained(curve()) == trained(whole_curve)
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]
    assert yaml.safe_load((RUN / "config.yaml").read_text())["trainer"]["max_steps"] == 20
    assert yaml.safe_load((RUN / "config_from_step_20.yaml").read_text())["trainer"]["max_steps"] == 31


def test_a_schedule_that_ends_with_the_run_ends_with_the_longer_run(first_run, capfd):
    main([*first_run, "--lr_scheduler.num_steps=null"])
    capfd.readouterr()
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=30"])
    assert "the learning rates to come change as well" in capfd.readouterr().out
    rates = [float(row["train/lr"]) for row in trained(curve())]
    assert rates[-1] > 0
    assert len(rates) == 10


def test_the_curves_have_no_gap_and_no_overlap(first_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    main(first_run)
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=31"])
    for folder, axis in (("by_step", "step"), ("by_tokens", "tokens")):
        events = EventAccumulator(str(RUN / folder))
        events.Reload()
        places = [event.step for event in events.Scalars("train/nats_per_token")]
        assert places == [int(row[axis]) for row in trained(curve())]
        assert len(set(places)) == len(places)


def test_last_is_of_the_newest_run_unless_one_is_named(first_run):
    main([*first_run, "--run_name=one"])
    main([*first_run, "--run_name=two", "--trainer.max_steps=4", "--trainer.val_check_interval=1"])
    assert "has checkpoints" in refused(*first_run, "--run_name=one")
    cli = LitCLI(["fit", "--ckpt_path=last", "--run_name=one", "--trainer.max_steps=22"])
    assert (Path(cli.trainer.log_dir).name, cli.trainer.global_step) == ("one", 22)
    cli = LitCLI(["validate", "--ckpt_path=best", "--run_name=two"])
    assert cli._checkpoint["global_step"] <= 4
    cli = LitCLI(["validate", "--ckpt_path=last"])
    assert cli._checkpoint["global_step"] == 22  # of `one`, which was written to last


def test_there_is_no_best_before_a_validation_and_nothing_to_train_after_the_end(first_run, capfd):
    main([*first_run, "--trainer.max_steps=2"])
    assert "was not validated yet" in refused("generate", "--ckpt_path=best")
    capfd.readouterr()
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=1"])
    assert "nothing is left to train: the checkpoint is at optimizer step 2" in capfd.readouterr().out
    assert last()["global_step"] == 2


def test_optimizer_options_can_change_on_a_resume_and_its_class_cannot(first_run):
    main([*first_run, "--lr_scheduler=null"])
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=24", "--optimizer.lr=1e-5", "--optimizer.weight_decay=0.5"])
    group = last()["optimizer_states"][0]["param_groups"][0]
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(1e-5), 0.5)
    options = ["--optimizer=SGD", "--optimizer.lr=1", "--trainer.max_steps=26"]
    message = refused("fit", "--ckpt_path=last", *options)
    assert re.search(r"optimizer=torch.optim.SGD, where .* has torch.optim.AdamW", message)


def test_a_learning_rate_changes_under_its_schedule(first_run):
    main([*first_run, "--lr_scheduler.warmup_steps=0"])
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=31", "--optimizer.lr=0.008"])
    rates = {int(row["step"]): float(row["train/lr"]) for row in trained(curve())}
    # Half a cosine over 40 steps; the logged rate is that of the step to come.
    for step, peak in ((18, 0.004), (21, 0.008), (30, 0.008)):
        assert rates[step] == pytest.approx(peak * 0.5 * (1 + math.cos(math.pi * step / 40)))


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
    assert read_checkpoint("runs/default/b/checkpoints/last.ckpt")["tokenizer"]["name"] == "word"


def test_the_same_command_on_a_finished_run_changes_nothing(first_run):
    main(first_run)
    before = (RUN / "metrics.csv").read_text()
    settings = (RUN / "config.yaml").read_text()
    main(["fit", "--ckpt_path=last"])
    assert (RUN / "metrics.csv").read_text() == before
    assert (RUN / "config.yaml").read_text() == settings


def test_somebody_elses_checkpoint_is_no_model_of_ours(tmp_path):
    write_checkpoint({"state_dict": {}, "global_step": 3}, tmp_path / "other.ckpt")
    for subcommand in ("fit", "test", "generate"):
        assert "not one of this package's" in refused(subcommand, f"--ckpt_path={tmp_path}/other.ckpt")
    with pytest.raises(InputError, match="not a checkpoint of a language model"):
        LitLanguageModel.load_from_checkpoint(tmp_path / "other.ckpt")


def test_a_checkpoint_in_a_config_file_is_not_passed_over(first_run):
    Path("mine.yaml").write_text("ckpt_path: last\n")
    assert "give it on the command line" in refused(*first_run, "--config=mine.yaml")


def test_only_the_checkpoints_own_argument_is_replaced(first_run, capfd):
    main(first_run)
    capfd.readouterr()
    main(["generate", "--ckpt_path", "last", "--num_tokens=3", "--prompt", "last"])
    assert capfd.readouterr().out.split()[0] == "last"


def test_the_progress_bar_can_be_switched_off(first_run, capfd):
    main([*first_run, "--trainer.enable_progress_bar=false", "--trainer.max_steps=3"])
    assert "step/s" not in capfd.readouterr().err


def test_an_optimizer_that_is_chosen_has_its_own_defaults(first_run):
    cli = LitCLI([*first_run, "--optimizer=AdamW", "--optimizer.lr=0.01", "--trainer.max_steps=1"])
    group = cli.trainer.optimizers[0].param_groups[0]
    assert (group["lr"] > 0, group["betas"], bool(group["fused"])) == (True, (0.9, 0.999), False)
    cli = LitCLI([*first_run, "--optimizer.lr=0.01", "--trainer.max_steps=1"])
    assert tuple(cli.trainer.optimizers[0].param_groups[0]["betas"]) == (0.9, 0.99)


def test_no_checkpoint_is_an_error_that_says_where_it_looked(first_run):
    assert re.search(
        r"ckpt_path='last': no checkpoint in runs/default/\*/checkpoints", refused("fit", "--ckpt_path=last")
    )
    main(first_run)
    assert "runs/wikitext2/*/checkpoints" in refused("fit", "--config=wikitext2.yaml", "--ckpt_path=last")
    assert "runs/default/other/checkpoints" in refused("test", "--ckpt_path=best", "--run_name=other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--data.num_lanes=4", "data.num_lanes: 4, where .* has 3"),
        ("--model.k1=6", "model.k1: 6, where .* has 5"),
        ("--data.windows_per_batch=3", "data.windows_per_batch: 3, where .* has 2"),
        ("--data.tokenizer=byte", "vocabulary of 257.*vocabulary of 8"),
        ("--model.core.hidden_size=11", r"model\.core=.*'hidden_size': 11.* trained with .*'hidden_size': 9"),
        ("--model.tie_weights=true", "model.tie_weights=True .* trained with False"),
    ],
)
def test_what_a_resume_cannot_keep_is_an_error_that_names_both(first_run, change, message):
    main(first_run)
    assert re.search(message, refused("fit", "--ckpt_path=last", change, "--trainer.max_steps=22"))


def test_other_data_cannot_be_resumed_on(first_run, words_folder):
    main([*first_run, "--data.tokenizer=byte"])
    (words_folder / "train.txt").write_text((words_folder / "train.txt").read_text().replace("w7", "w4", 1))
    message = refused("fit", "--ckpt_path=last", "--trainer.max_steps=22")
    assert re.search("data.path: .*, 266 tokens, .* where .* has .*, 266 tokens", message)


def test_a_new_run_from_weights_alone(first_run, words_folder):
    main(first_run)
    cli = LitCLI(
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
    assert "model.core=" in refused(*first_run, source, "--model.core.hidden_size=10")
    assert "vocabulary of" in refused("fit", f"--data.path={words_folder}", "--data.tokenizer=char", source)


@pytest.mark.parametrize("tokenizer", ["byte", "char", "word"])
def test_a_checkpoint_alone_is_enough(first_run, tokenizer, words_folder, tmp_path, monkeypatch, capfd):
    main([*first_run, f"--data.tokenizer={tokenizer}"])
    (tmp_path / "alone").mkdir()
    (tmp_path / RUN / "checkpoints" / "last.ckpt").rename(tmp_path / "alone" / "model.ckpt")
    monkeypatch.chdir(tmp_path / "alone")
    capfd.readouterr()
    main(["test", "--ckpt_path=model.ckpt"])
    assert "nats_per_token" in capfd.readouterr().out
    main(["test", "--ckpt_path=model.ckpt", "--data.eval_num_lanes=5"])
    assert "data.eval_num_lanes: 2 in the checkpoint, 5 now" in capfd.readouterr().out
    words_folder.rename(tmp_path / "gone")
    main(["generate", "--ckpt_path=model.ckpt", "--prompt=w1 w2", "--num_tokens=9"])
    assert capfd.readouterr().out.startswith("w1 w2")


def test_a_broken_newest_checkpoint_gives_way_to_the_one_before(first_run):
    main([*first_run, "--checkpoint.every_n_steps=3"])
    file = RUN / "checkpoints" / "last.ckpt"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.warns(UserWarning, match=r"last\.ckpt.*(previous|best)\.ckpt is taken instead"):
        cli = LitCLI(["fit", "--ckpt_path=last", "--trainer.max_steps=24"])
    assert cli.trainer.global_step == 24
    for broken in (RUN / "checkpoints").iterdir():
        broken.write_bytes(b"")
    message = refused("fit", "--ckpt_path=last")
    assert "no checkpoint that can be read" in message
    assert "last.ckpt" in message


def test_a_full_disk_does_not_stop_a_run(first_run, monkeypatch):
    saved = []

    def limited(checkpoint, path):
        saved.append(checkpoint["global_step"])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if 8 <= saved[-1] < 16:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        try:
            save(checkpoint, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    save = torch.save
    monkeypatch.setattr(torch, "save", limited)
    with pytest.warns(UserWarning, match=r"could not be written \(.*last good checkpoint: .*last\.ckpt"):
        main([*first_run, "--checkpoint.every_n_steps=2"])
    assert max(saved) == last()["global_step"] == 20
    assert not list((RUN / "checkpoints").glob("*.part"))


def test_the_number_of_checkpoints_is_bounded(first_run):
    main(
        [
            *first_run,
            "--trainer.val_check_interval=1",
            "--checkpoint.save_top_k=3",
            "--checkpoint.every_n_steps=1",
            "--checkpoint.monitor=val/accuracy",
            "--checkpoint.mode=max",
        ]
    )
    assert sorted(path.name for path in (RUN / "checkpoints").iterdir()) == [
        "best-2.ckpt",
        "best-3.ckpt",
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
    ]
    best = [
        read_checkpoint(RUN / "checkpoints" / name)["tbptt"]["metrics"]["val/accuracy"]
        for name in ("best.ckpt", "best-2.ckpt", "best-3.ckpt")
    ]
    assert best == sorted(best, reverse=True)
    assert best[0] == max(float(row["val/accuracy"]) for row in curve() if "val/accuracy" in row)


def test_no_flipped_bit_and_no_cut_goes_unseen(first_run):
    main(first_run)
    file = RUN / "checkpoints" / "last.ckpt"
    content, whole = file.read_bytes(), last()
    generator = torch.Generator().manual_seed(3)
    changed = []
    for _ in range(400):
        place = int(torch.randint(len(content) * 8, (1,), generator=generator))
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        changed.append(bytes(flipped))
    changed += [content[: int(torch.randint(len(content), (1,), generator=generator))] for _ in range(40)]
    refusals = 0
    for content in changed:
        file.write_bytes(content)
        try:
            found = read_checkpoint(file)
        except InputError:
            refusals += 1
        else:
            equal(found, whole)
            assert all(
                torch.equal(a, b)
                for a, b in zip(
                    found["optimizer_states"][0]["state"][0].values(),
                    whole["optimizer_states"][0]["state"][0].values(),
                    strict=True,
                )
            )
            assert found["tbptt"]["log"] == whole["tbptt"]["log"]
    assert refusals > 350


class Explosive:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_checkpoint_that_would_run_code_is_refused(first_run):
    main(first_run)
    file = RUN / "checkpoints" / "last.ckpt"
    torch.save(read_checkpoint(file) | {"extra": Explosive()}, file)
    for arguments in (
        ["test", f"--ckpt_path={file}"],
        ["fit", f"--ckpt_path={file}"],
        ["generate", f"--ckpt_path={file}"],
    ):
        assert "not a checkpoint that can be read safely" in refused(*arguments)
    file.write_bytes(pickle.dumps(Explosive()))
    assert "not a checkpoint that can be read safely" in refused("test", f"--ckpt_path={file}")
    with pytest.raises(InputError, match="read safely"):
        LitLanguageModel.load_from_checkpoint(file)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("planted", ["core", "optimizer", "callable", "text", "accelerator"])
def test_a_checkpoint_that_names_a_foreign_class_imports_nothing(first_run, planted, tmp_path, monkeypatch):
    (tmp_path / "foreign.py").write_text("import os\nos.mkdir('exploded')\nclass Core: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    main(first_run)
    file = RUN / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(file)
    entry = {"class_path": "foreign.Core", "init_args": {}}
    if planted == "core":
        checkpoint["settings"]["model"]["core"] = checkpoint["hyper_parameters"]["core"] = entry
    elif planted in ("optimizer", "text"):
        checkpoint["settings"]["optimizer"] = entry if planted == "optimizer" else "foreign.Core"
    elif planted == "accelerator":
        checkpoint["settings"]["trainer"]["accelerator"] = "foreign.Core"
    else:
        checkpoint["settings"]["lr_scheduler"] = {
            "class_path": "torch.optim.lr_scheduler.LambdaLR",
            "init_args": {"lr_lambda": "foreign.Core"},
        }
    write_checkpoint(checkpoint, file)
    if planted == "accelerator":  # left out: trainer settings that could be imported are not taken
        main(["fit", f"--ckpt_path={file}", "--trainer.max_steps=22"])
    else:
        message = refused("fit", f"--ckpt_path={file}", "--trainer.max_steps=30")
        assert re.search("not imported because a file says so|no class with its arguments", message)
    if planted == "core":
        assert "not imported because" in refused("generate", f"--ckpt_path={file}")
        with pytest.raises(InputError, match="pass it as core="):
            LitLanguageModel.load_from_checkpoint(file)
    assert "foreign" not in sys.modules
    assert not Path("exploded").exists()


class Doubling(RecurrentCore):
    """A user's own class."""

    def __init__(self, size: int = 6):
        super().__init__()
        self.input_size = self.output_size = size
        self.cell = torch.nn.GRUCell(size, size)

    def initial_state(self, num_lanes):
        return (torch.zeros(num_lanes, self.input_size),)

    def forward(self, inputs, state):
        outputs = []
        for x in inputs.unbind(1):
            state = (self.cell(x, state[0]),)
            outputs.append(state[0])
        return torch.stack(outputs, 1), state


def test_a_users_own_core_is_passed_in(words_folder, tmp_path):
    from lightning.pytorch import Trainer

    from lit_tbptt import TextLanesDataModule

    data = TextLanesDataModule(str(words_folder), tokenizer="word", num_lanes=3, k1=5, eval_num_lanes=2)
    model = LitLanguageModel(Doubling(7), k1=5)
    trainer = Trainer(
        max_steps=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        accelerator="cpu",
    )
    trainer.fit(model, data)
    trainer.save_checkpoint("own.ckpt", weights_only=False)
    again = LitLanguageModel.load_from_checkpoint("own.ckpt", core=Doubling(7))
    assert again.generate(["w1"], 9, seed=4) == model.generate(["w1"], 9, seed=4)
    with pytest.raises(InputError, match=r"its core is a test_continued_runs.Doubling.* pass it as core="):
        LitLanguageModel.load_from_checkpoint("own.ckpt")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 0)])
def test_signals_save_and_stop_or_go_on(first_run, number, status):
    arguments = [*first_run, "--trainer.max_steps=400", "--lr_scheduler.num_steps=400"]
    script = f"import sys; sys.argv = ['train.py', *{arguments!r}]; from lit_tbptt.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    metrics = RUN / "metrics.csv"
    deadline = time.monotonic() + 100
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == status, errors
    step = last()["global_step"]
    if status:
        assert 0 < step < 400
        assert f"stopped by {number.name} after optimizer step {step}; saved" in errors
        main(["fit", "--ckpt_path=last"])
    assert last()["global_step"] == 400


def test_a_changed_tensor_is_named_by_its_checksum(first_run):
    main(first_run)
    file = RUN / "checkpoints" / "last.ckpt"
    with zipfile.ZipFile(file) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
        offset = entry.header_offset
    content = bytearray(file.read_bytes())
    name, extra = struct.unpack_from("<HH", content, offset + 26)
    content[offset + 30 + name + extra + 5] ^= 8
    file.write_bytes(content)
    assert "does not match its checksum" in refused("test", f"--ckpt_path={file}")
