"""Checkpoints that are damaged, somebody else's, or made to run code."""

import copy
import os
import pickle
import re
import struct
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from command_line import RUN, equal, last, refused
from tasks import OwnGRU

from lit_tbptt import InputError, LitLanguageModel
from lit_tbptt.cli import main
from lit_tbptt.files.checkpoint import read_checkpoint, write_checkpoint

pytestmark = pytest.mark.usefixtures("in_tmp_path")


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
            assert found["lit_tbptt"]["log"] == whole["lit_tbptt"]["log"]
    assert refusals > 350


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


def test_somebody_elses_checkpoint_is_no_model_of_ours(tmp_path):
    write_checkpoint({"state_dict": {}, "global_step": 3}, tmp_path / "other.ckpt")
    for subcommand in ("fit", "test", "generate"):
        assert "not one of this package's" in refused(subcommand, f"--ckpt_path={tmp_path}/other.ckpt")
    with pytest.raises(InputError, match="not one of this package's"):
        LitLanguageModel.load_from_checkpoint(tmp_path / "other.ckpt")


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


def test_a_checkpoint_that_names_a_foreign_class_imports_nothing(first_run, tmp_path, monkeypatch):
    (tmp_path / "foreign.py").write_text("import os\nos.mkdir('exploded')\nclass Core: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    main(first_run)
    file = RUN / "checkpoints" / "last.ckpt"
    whole, entry = read_checkpoint(file), {"class_path": "foreign.Core", "init_args": {}}
    callable_ = {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": "foreign.Core"}}

    def nothing_is_imported():
        assert "foreign" not in sys.modules
        assert not Path("exploded").exists()

    def planted(settings):
        checkpoint = copy.deepcopy(whole)
        for section, value in settings.items():
            now = checkpoint["lit_tbptt"]["settings"]
            now[section] = now[section] | value if section in ("model", "trainer") else value
        return checkpoint

    for settings in ({"optimizer": entry}, {"optimizer": "foreign.Core"}, {"lr_scheduler": callable_}):
        write_checkpoint(planted(settings), file)
        message = refused("fit", f"--ckpt_path={file}", "--trainer.max_steps=30")
        assert re.search("not imported just because the checkpoint names it|no class with its arguments", message)
        nothing_is_imported()
    checkpoint = planted({"model": {"core": entry}})
    checkpoint["hyper_parameters"]["core"] = entry
    write_checkpoint(checkpoint, file)
    for command in ("fit", "generate"):
        assert "not imported just because" in refused(command, f"--ckpt_path={file}")
    with pytest.raises(InputError, match="pass the class, or an instance of it, as core"):
        LitLanguageModel.load_from_checkpoint(file)
    nothing_is_imported()
    # Trainer settings that could be imported are not taken.
    write_checkpoint(planted({"trainer": {"accelerator": "foreign.Core"}}), file)
    main(["fit", f"--ckpt_path={file}", "--trainer.max_steps=22"])
    nothing_is_imported()


def test_a_users_own_core_is_passed_in(words_folder, tmp_path):
    from lightning.pytorch import Trainer

    from lit_tbptt import TextLanesDataModule

    data = TextLanesDataModule(str(words_folder), tokenizer="word", num_lanes=3, k1=5, eval_num_lanes=2)
    model = LitLanguageModel(OwnGRU(7), k1=5)
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
    again = LitLanguageModel.load_from_checkpoint("own.ckpt", core=OwnGRU(7))
    assert again.generate(["w1"], 9, seed=4) == model.generate(["w1"], 9, seed=4)
    with pytest.raises(InputError, match=r"core is a tasks.OwnGRU, which is not imported .*as core"):
        LitLanguageModel.load_from_checkpoint("own.ckpt")
