"""What a parser refuses is said in one sentence."""

from pathlib import Path

import pytest
from command_line import refused

# Options, and what the message says.
REFUSED = {
    "an abbreviated option": (["--conf=my.yaml"], "--conf: there is no such option; did you mean --config?"),
    "a misspelt option": (
        ["--data.num_lane=3"],
        "--data.num_lane: there is no such option; did you mean --data.num_lanes?",
    ),
    "two callbacks": (
        ["--trainer.callbacks=TextSamples", "--trainer.callbacks", "GradientHorizon"],
        "trainer.callbacks: given twice, and only the last would count; write --trainer.callbacks+=GradientHorizon for",
    ),
    "no option": (["my.yaml"], "'my.yaml': an option begins with --, and its value follows it; did you mean --config "),
    "a path": (["my texts"], "'my': an option begins with --, and its value follows it; did you mean --data.path my?"),
    "a missing value": (["--model.k1"], "--model.k1: its value is missing"),
    "a type": (["--model.k1=long"], "model.k1='long': must be a whole number"),
    "a truth value": (["--data.shuffle=maybe"], "data.shuffle='maybe': must be true or false"),
    "a choice": (["--model.dropout_over_time=x"], "model.dropout_over_time='x': must be free or shared"),
    "several choices": (["--trainer.precision=17"], "trainer.precision='17': must be 64 or 32 or 16"),
    "a class": (["--model.core=LSTMM"], "model.core='LSTMM': no such class; did you mean LSTM?"),
    "a class like none": (["--model.core=Nix"], "no such class; there are "),
    "an optimizer": (["--optimizer=Adm"], "optimizer='Adm': no such class; did you mean Adam?"),
    "an argument of a class": (["--model.core.hidden=3"], "model.core.hidden: lit_tbptt.LSTM has no such argument"),
    "an argument without its class": (
        ["--data.path=words", "--model.evaluation.rule=sgd"],
        "model.evaluation.rule: lit_tbptt.Evaluation has no such argument; choose a class with --model.evaluation: ",
    ),
    "a misspelt argument": (
        ["--optimizer.lrr=3"],
        "optimizer.lrr: torch.optim.AdamW has no such argument; did you mean lr?",
    ),
    "a type in a class": (["--model.core.hidden_size=x"], "model.core.hidden_size='x': must be a whole number"),
    "a type in an optimizer": (["--optimizer.lr=a"], "optimizer.lr='a': must be a number"),
    "an argument that is needed": (["--lr_scheduler=StepLR"], "needs step_size; give --lr_scheduler.step_size"),
    "a file": (["--config=nowhere.yaml"], "config='nowhere.yaml': there is no file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_option_the_value_and_the_rule(case, in_tmp_path):
    options, message = REFUSED[case]
    said = refused("fit", *options)
    assert said.startswith("error: ")
    assert message in said
    assert "\n" not in said
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  core: LSTM\n  k1: abc\n", "my.yaml, line 3: model.k1='abc': must be a whole number"),
        ("model:\n  kk1: 3\n", "my.yaml, line 2: model.kk1: there is no such option; did you mean model.k1?"),
        ("model:\n  k1: 3\n k2: [\n", "my.yaml, line 3: not YAML"),
        ("- a\n", "my.yaml"),
        (
            "model:\n  k1: 3\noptimizer:\n  class_path: SGD\n  lr: 0.1\n",
            "my.yaml, line 3: optimizer: beside class_path there can be init_args only; put its arguments there",
        ),
    ],
)
def test_the_file_and_the_line(text, message, in_tmp_path):
    Path("my.yaml").write_text(text)
    said = refused("fit", "--config=my.yaml")
    assert message in said
    assert "\n" not in said


def test_no_command_and_one_that_does_not_exist(capsys):
    assert "did you mean fit?" in refused("fitt")
