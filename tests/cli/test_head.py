"""Another output layer from the command line."""

import pytest
import torch
from command_line import FIRST_RUN, RUN, curve, last, refused

from lit_tbptt import LitLanguageModel
from lit_tbptt.cli import main
from lit_tbptt.files.checkpoint import read_checkpoint

HEAD = ["--model.head=Adaptive", "--model.head.cutoffs=[4,7]", "--model.head.narrowing=2"]


@pytest.mark.slow
def test_an_adaptive_softmax_trains_resumes_and_writes(words_folder, in_tmp_path, capsys):
    begin = ["fit", f"--data.path={words_folder}", *FIRST_RUN, *HEAD]
    main([*begin, "--run_name=whole"])
    main([*begin, "--run_name=parts", "--trainer.max_steps=11"])
    main(["fit", "--ckpt_path=last", "--run_name=parts", "--trainer.max_steps=20"])
    whole, parts = (RUN.with_name(name) for name in ("whole", "parts"))
    assert curve(whole) == curve(parts)
    path = whole / "checkpoints" / "last.ckpt"
    model = LitLanguageModel.load_from_checkpoint(path)
    assert model.language_model.head.cutoffs[:2] == [4, 7]
    weights = read_checkpoint(parts / "checkpoints" / "last.ckpt")["state_dict"]
    for name, value in model.state_dict().items():
        assert torch.equal(weights[name], value)
    capsys.readouterr()
    main(["generate", f"--ckpt_path={path}", "--num_tokens=5"])
    assert len(capsys.readouterr().out.split()) > 1
    assert "head" in refused("fit", f"--ckpt_path={path}", "--model.head.cutoffs=[5,7]", "--trainer.max_steps=25")
    main(
        [*begin[:2], f"--init_from={path}", "--trainer.max_steps=1", "--data.num_lanes=2", "--trainer.accelerator=cpu"]
    )
    assert last()["hyper_parameters"]["head"]["init_args"] == {"cutoffs": [4, 7], "narrowing": 2.0}


def test_a_head_that_does_not_fit_is_one_message(words_folder, in_tmp_path):
    begin = ["fit", f"--data.path={words_folder}", *FIRST_RUN, "--model.head=Adaptive"]
    assert "vocabulary of" in refused(*begin, "--model.head.cutoffs=[4,7000]", "--model.head.narrowing=2")
    assert "narrowing=4.0" in refused(*begin, "--model.head.cutoffs=[4,7]")
