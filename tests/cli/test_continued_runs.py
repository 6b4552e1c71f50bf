"""Runs from the command line: where they live, which checkpoint is taken, and how they are continued."""

import re
from pathlib import Path

import pytest
import yaml
from command_line import RUN, curve, equal, last, refused, trained

from lit_tbptt.cli import TextCLI, main
from lit_tbptt.files.checkpoint import read_checkpoint


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


@pytest.mark.slow
def test_last_is_of_the_newest_run_unless_one_is_named(first_run):
    main([*first_run, "--run_name=one"])
    main([*first_run, "--run_name=two", "--trainer.max_steps=4", "--trainer.val_check_interval=1"])
    assert "has checkpoints" in refused(*first_run, "--run_name=one")
    cli = TextCLI(["fit", "--ckpt_path=last", "--run_name=one", "--trainer.max_steps=22"])
    assert (Path(cli.trainer.log_dir).name, cli.trainer.global_step) == ("one", 22)
    cli = TextCLI(["validate", "--ckpt_path=best", "--run_name=two"])
    assert cli._checkpoint["global_step"] <= 4
    cli = TextCLI(["validate", "--ckpt_path=last"])
    assert cli._checkpoint["global_step"] == 22  # of `one`, which was written to last


def test_there_is_no_best_before_a_validation_and_nothing_to_train_after_the_end(first_run, capfd):
    main([*first_run, "--trainer.max_steps=2"])
    assert "was not validated during training" in refused("generate", "--ckpt_path=best")
    capfd.readouterr()
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=1"])
    assert "nothing is left to train: the checkpoint is at optimizer step 2" in capfd.readouterr().out
    assert last()["global_step"] == 2


def test_last_weights_that_were_not_validated_are_said(first_run, capfd):
    main([*first_run, "--trainer.val_check_interval=2", "--trainer.max_steps=4"])  # steps 3 and 4 are a batch
    assert "not validated since" not in capfd.readouterr().out
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=6"])
    found = re.search(
        r"^not validated since optimizer step 4: .* --ckpt_path (\S+)$", capfd.readouterr().out, re.MULTILINE
    )
    assert found is not None
    main(["validate", f"--ckpt_path={found[1]}"])
    assert "optimizer step 6" in capfd.readouterr().err


def test_the_same_command_on_a_finished_run_changes_nothing(first_run):
    main(first_run)
    before = (RUN / "metrics.csv").read_text()
    settings = (RUN / "config.yaml").read_text()
    main(["fit", "--ckpt_path=last"])
    assert (RUN / "metrics.csv").read_text() == before
    assert (RUN / "config.yaml").read_text() == settings


def test_a_checkpoint_in_a_config_file_is_not_passed_over(first_run):
    Path("mine.yaml").write_text("ckpt_path: last\n")
    assert "give it on the command line" in refused(*first_run, "--config=mine.yaml")


def test_only_the_checkpoints_own_argument_is_replaced(first_run, capfd):
    main(first_run)
    capfd.readouterr()
    main(["generate", "--ckpt_path", "last", "--num_tokens=3", "--prompt", "last"])
    assert capfd.readouterr().out.split()[0] == "last"


def test_no_checkpoint_is_an_error_that_says_where_it_looked(first_run):
    assert re.search(
        r"ckpt_path='last': no checkpoint in runs/default/\*/checkpoints", refused("fit", "--ckpt_path=last")
    )
    main(first_run)
    assert "runs/wikitext2/*/checkpoints" in refused("fit", "--config=wikitext2.yaml", "--ckpt_path=last")
    assert "runs/default/other/checkpoints" in refused("test", "--ckpt_path=best", "--run_name=other")


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
    main(["generate", "--ckpt_path=model.ckpt", "--prompt=w1 w0", "--num_tokens=9"])
    assert capfd.readouterr().out.startswith("w1 w0")


@pytest.mark.slow
def test_a_broken_newest_checkpoint_gives_way_to_the_one_before(first_run):
    main([*first_run, "--checkpoint.every_n_steps=3"])
    file = RUN / "checkpoints" / "last.ckpt"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.warns(UserWarning, match=r"last\.ckpt.*(previous|best)\.ckpt is taken instead"):
        cli = TextCLI(["fit", "--ckpt_path=last", "--trainer.max_steps=24"])
    assert cli.trainer.global_step == 24
    for broken in (RUN / "checkpoints").iterdir():
        broken.write_bytes(b"")
    message = refused("fit", "--ckpt_path=last")
    assert "no checkpoint that can be read" in message
    assert "last.ckpt" in message


def test_a_class_may_be_named_in_any_of_several_configuration_files(words_folder, in_tmp_path, monkeypatch):
    Path("own_core.py").write_text("from lit_tbptt import GRU\n\n\nclass Own(GRU):\n    pass\n")
    monkeypatch.syspath_prepend(Path.cwd())
    Path("mine.yaml").write_text(
        "model:\n  core:\n    class_path: own_core.Own\n    init_args:\n      hidden_size: 9\n"
    )
    Path("small.yaml").write_text("trainer:\n  max_steps: 3\n  enable_model_summary: false\n")
    both = ["fit", f"--data.path={words_folder}", "--data.num_lanes=3", "--config=mine.yaml", "--config=small.yaml"]
    main([*both, "--model.k1=5"])
    main([*both, "--ckpt_path=last", "--trainer.max_steps=5"])
    assert read_checkpoint("runs/small/version_0/checkpoints/last.ckpt")["global_step"] == 5
    assert "is not imported just because the checkpoint names it" in refused(
        "fit", "--ckpt_path=last", "--config=small.yaml", "--trainer.max_steps=7"
    )


def test_a_run_of_epochs_is_continued_by_epochs_and_says_that_it_has_ended(first_run, capfd):
    main([*first_run, "--trainer.max_steps=-1", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"])
    assert re.search(r"^continue: .* --trainer\.max_epochs N$", capfd.readouterr().out, re.MULTILINE)
    step = last()["global_step"]
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=90"])
    assert "the checkpoint is at the end of epoch 1, of trainer.max_epochs=1" in capfd.readouterr().out
    assert last()["global_step"] == step
    main(["fit", "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert "nothing is left" not in capfd.readouterr().out
    assert last()["global_step"] == 2 * step


def test_what_a_resumed_run_cannot_change_of_the_network(first_run):
    given = ["--model.tie_weights=true", "--model.core.input_size=9", "--model.temporal_penalty=0.5"]
    main([*first_run, *given, "--trainer.max_steps=2"])
    said = refused("fit", "--ckpt_path=last", "--model.core=LSTM", "--trainer.max_steps=3")
    assert said.startswith("error: model.core=lit_tbptt.LSTM with a checkpoint that was trained with lit_tbptt.GRU: ")
    said = refused("fit", "--ckpt_path=last", "--model.temporal_penalty=0", "--trainer.max_steps=3")
    assert said.startswith("error: model.temporal_penalty=0.0, where the run to be resumed has 0.5: ")


def test_a_callback_that_a_resumed_run_lacks_is_named_once(first_run, capfd, recwarn):
    Path("averaged.yaml").write_text("trainer:\n  callbacks:\n  - class_path: NonMonotonicAveraging\n")
    main([*first_run, "--config=averaged.yaml", "--trainer.max_steps=2"])
    capfd.readouterr()
    main(["fit", "--ckpt_path=runs/averaged/version_0/checkpoints/last.ckpt", "--trainer.max_steps=3"])
    said = capfd.readouterr()
    assert said.out.count("NonMonotonicAveraging") == 1
    assert "give the --config that the run was started with" in said.out
    assert "Be aware" not in said.err
    assert not [each for each in recwarn if "Be aware" in str(each.message)]
