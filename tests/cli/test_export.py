"""The command export: a checkpoint's model as a folder."""

import json
from pathlib import Path

import pytest
import torch
from command_line import RUN, last, refused

from lit_tbptt.cli import main
from lit_tbptt.text_model import TextModel


def test_a_checkpoint_becomes_a_folder(first_run, capfd):
    main(first_run)
    capfd.readouterr()
    main(["export", "--ckpt_path=last", "model"])
    assert "written: model" in capfd.readouterr().out
    assert {path.name for path in Path("model").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    checkpoint, model = last(), TextModel.from_pretrained("model")
    saved = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, saved.pop(name))
    assert not saved
    card = Path("model/README.md").read_text()
    assert "| optimizer steps | 20 |" in card
    assert f"| val/perplexity | {checkpoint['lit_tbptt']['metrics']['val/perplexity'].item():,.6g} |" in card
    assert json.loads(Path("model/config.json").read_text())["core"]["class_path"] == "lit_tbptt.GRU"
    assert model.k1 == 5
    expected = TextModel.from_checkpoint(checkpoint).generate("w1 w2", 20)
    assert model.generate("w1 w2", 20) == expected


def test_what_is_wrong_is_one_message(first_run):
    assert "no such file" in refused("export", "model", "--ckpt_path=none.ckpt")
    main([*first_run, "--trainer.max_steps=1"])
    Path("file").write_text("")
    assert "file: cannot be written to" in refused("export", "file", "--ckpt_path=last")
    assert "FOLDER" in refused("export", f"--ckpt_path={RUN}/checkpoints/last.ckpt")


BYTE_PAIRS = ["--data.tokenizer=bpe", "--data.vocabulary_limit=271"]


@pytest.mark.parametrize("tokenizer", [[], BYTE_PAIRS])
def test_an_exported_model_writes_and_scores_as_its_checkpoint_does(tokenizer, first_run, capfd):
    main([*first_run, *tokenizer, "--trainer.max_steps=2"])
    main(["export", "--ckpt_path=last", "my model"])
    for command in (["generate", "--prompt=w1 w2", "--num_tokens=9"], ["score", "words/test.txt"]):
        printed = []
        for given in ("last", "my model"):
            capfd.readouterr()
            main([*command, f"--ckpt_path={given}"])
            printed.append(capfd.readouterr().out)
        assert printed[0] == printed[1] != ""


def test_byte_pairs_are_in_the_checkpoint_and_counted_by_the_byte(first_run, caplog):
    caplog.set_level("INFO")
    main([*first_run, *BYTE_PAIRS, "--trainer.max_steps=2"])
    assert (
        f"bpe tokenizer, vocabulary of 259, trained on {Path('words/train.txt').stat().st_size:,} bytes" in caplog.text
    )
    Path("words/train.txt").write_text("another text, with other pairs")
    main(["score", "--ckpt_path=last", "--out=scores.jsonl", "words/test.txt"])
    scored = json.loads(Path("scores.jsonl").read_text().splitlines()[0])
    assert scored["bytes"] == Path("words/test.txt").stat().st_size
    assert "bits_per_byte" in scored
    assert last()["lit_tbptt"]["tokenizer"]["name"] == "bpe"
    assert "must be 257 or more" in refused("fit", "--data.tokenizer=bpe", "--data.vocabulary_limit=256")


def test_an_exported_model_is_no_checkpoint_of_a_run(tmp_path, in_tmp_path):
    Path("model").mkdir()
    Path("model/model.safetensors").touch()
    for given in ("model", "model/model.safetensors"):
        for command in ("fit", "test", "validate", "export folder", "fit --init_from"):
            name = "init_from" if "init_from" in command else "ckpt_path"
            said = refused(*command.replace(" --init_from", "").split(), f"--{name}={given}")
            assert said.startswith(f"error: {name}={given!r}: a model that was exported, without the state of its")
