"""What a run says of bits per byte where the vocabulary does not have every word."""

import csv

import pytest
from command_line import FIRST_RUN, RUN

from lit_tbptt.cli import main


@pytest.mark.usefixtures("in_tmp_path")
def test_a_run_with_unknown_words_has_no_bits_per_byte_and_no_compressor_table(words_folder, capsys):
    with open(words_folder / "test.txt", "a") as file:
        file.write("a word of its own\n")
    main(["fit", f"--data.path={words_folder}", *FIRST_RUN])
    said = capsys.readouterr()
    assert "not compared with compressors: 5 of the test split's tokens are <unk>" in said.out
    assert "gzip -9" not in said.out
    table = {line.split()[0]: line.split()[1:] for line in said.out.splitlines() if line.startswith(("bits", "nats"))}
    assert (len(table["nats_per_token"]), len(table["bits_per_byte"])) == (2, 1)
    rows = list(csv.DictReader((RUN / "metrics.csv").read_text().splitlines()))
    assert any(row["val/bits_per_byte"] for row in rows)
    assert "test/bits_per_byte" not in rows[0]
