"""Configuration files: no setting is lost without a word, in them or beside them."""

from pathlib import Path

import pytest
import yaml
from command_line import refused

from lit_tbptt.cli import main

REFUSED = {
    "a section twice": (
        b"data:\n  path: words\nmodel:\n  k1: 5\ndata:\n  num_lanes: 3\n",
        "my.yaml, line 5: data stands in line 1 already, and only the last one would count",
    ),
    "a setting twice": (
        b"data:\n  path: words\n  num_lanes: 3\n  num_lanes: 4\n",
        "my.yaml, line 4: data.num_lanes stands in line 3 already",
    ),
    "a setting of a list twice": (
        b"trainer:\n  callbacks:\n  - class_path: TextSamples\n    class_path: GradientHorizon\n",
        "my.yaml, line 4: trainer.callbacks.class_path stands in line 3 already",
    ),
    "a list for a name": (b"model:\n  [a, b]: 3\n", "my.yaml, line 2: before a colon must stand the name"),
    "Latin 1": (b"data:\n  path: caf\xe9\n", "my.yaml: byte 17 is not UTF-8 text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_lost_is_refused(case, in_tmp_path):
    text, message = REFUSED[case]
    Path("my.yaml").write_bytes(text)
    said = refused("fit", "--config=my.yaml")
    assert said.startswith(f"error: {message}")
    assert "\n" not in said


def test_other_files_pass_to_the_parser(in_tmp_path):
    Path("my.yaml").write_bytes(b"\xef\xbb\xbfmodel:\r\n  k1: nine\r\n")
    assert "my.yaml, line 2: model.k1='nine': must be a whole number" in refused("fit", "--config=my.yaml")
    assert "there is no file" in refused("fit", "--config=none.yaml")


@pytest.mark.parametrize("file", [["--config=my.yaml"], ["--config", "my.yaml"], ["-c", "my.yaml"]])
def test_options_count_wherever_the_file_stands(file, in_tmp_path, capsys):
    Path("my.yaml").write_text("model:\n  k1: 9\n  k2: 11\ndata:\n  num_lanes: 5\n")
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--model.k1=7", *file, "--data.num_lanes", "3", "--print_config"])
    parsed = yaml.safe_load(capsys.readouterr().out)
    assert (parsed["model"]["k1"], parsed["model"]["k2"], parsed["data"]["num_lanes"]) == (7, 11, 3)
