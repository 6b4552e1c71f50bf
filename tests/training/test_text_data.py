"""The data module: the lanes that its settings make of a corpus, and the settings that it refuses."""

import json
import math
import os
import re
import signal
import time
from pathlib import Path

import pandas
import pytest
import tokenizers
import torch
from datasets import DatasetDict
from letters import corpus
from lightning.pytorch import Trainer
from processes import start, status_of, wait_until

from lit_tbptt import LSTM, InputError, LitLanguageModel, TextLanesDataModule
from lit_tbptt.data.text.tokenizers import ByteTokenizer


def test_the_datamodule_gives_windows_of_every_split(words_folder, tmp_path):
    data = TextLanesDataModule(
        str(words_folder),
        tokenizer="word",
        num_lanes=3,
        k1=5,
        windows_per_batch=2,
        eval_num_lanes=2,
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare_data()
    data.setup("fit")
    lines = (words_folder / "train.txt").read_text().count("\n")
    assert data.splits["train"].num_tokens == 83 + lines
    assert [len(batch.windows) for batch in data.train_dataloader()] == [2, 2, 2, 1]
    assert [window.inputs.shape for batch in data.val_dataloader() for window in batch.windows] == [(2, 10), (2, 8)]


def test_the_word_vocabulary_is_found_again(words_folder, tmp_path):
    for _ in range(2):
        data = TextLanesDataModule(str(words_folder), tokenizer="word", cache_dir=str(tmp_path / "cache"))
        data.prepare_data()
    (file,) = (tmp_path / "cache" / "lit_tbptt").glob("*.tokenizer.json")
    assert json.loads(file.read_text())["name"] == "word"


def test_a_corpus_without_validation_has_nothing_to_validate_on():
    data = TextLanesDataModule(corpus("ab", "cd"), val_fraction=0.0, num_lanes=2)
    data.setup("fit")
    assert data.val_dataloader() == []
    with pytest.raises(InputError, match=r"no validation split.*val_fraction above 0"):
        data.setup("validate")
    with pytest.raises(InputError, match="no test split, only train"):
        data.setup("test")


def test_a_stream_holds_nothing_out():
    data = TextLanesDataModule(corpus("ab", "cd"), num_lanes=2, streaming=True)
    data.setup("fit")
    assert data.val_dataloader() == []
    with pytest.raises(InputError, match=r"no validation split, only train; nothing is held out of a stream"):
        data.setup("validate")
    with pytest.raises(InputError, match=r"data\.val_fraction=0\.2 with data\.streaming=True"):
        TextLanesDataModule(corpus("ab", "cd"), val_fraction=0.2, streaming=True).setup("fit")


@pytest.mark.parametrize("kind", ["Path", "list", "DataFrame", "dict", "Tokenizer"])
def test_what_a_user_has_in_python_is_taken(kind, words_folder, tmp_path):
    texts = [(words_folder / f"{split}.txt").read_text() for split in ("train", "valid", "test")]
    options = {"num_lanes": 3, "k1": 5, "eval_num_lanes": 2, "tokenizer": "word"}
    match kind:
        case "Path":
            given, shown = words_folder, str(words_folder)
        case "list":
            given, shown = texts, "<list>"
        case "DataFrame":
            given, shown = pandas.DataFrame({"text": texts}), "<DataFrame>"
        case "dict" | "Tokenizer":
            given, shown = {"train": texts[:1], "dev": texts[1:]}, "<dict>"
    if kind == "Tokenizer":
        options["tokenizer"] = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, "?"))
        options["tokenizer"].pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    data = TextLanesDataModule(given, **options)
    data.setup("fit")
    assert data.hparams.path == shown
    assert data.hparams.tokenizer == ("<Tokenizer>" if kind == "Tokenizer" else "word")
    assert set(data.splits) == {"train", "validation"} | ({"test"} if kind == "Path" else set())
    content = [text for row in data.documents["validation"].to_dict().values() for text in row]
    assert content == texts[{"Path": slice(1, 2), "list": slice(2, 3), "DataFrame": slice(2, 3)}.get(kind, slice(1, 3))]


def fit(data, model=None, **options):
    model = LitLanguageModel(LSTM(9), k1=5) if model is None else model
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, log_every_n_steps=1, enable_checkpointing=False, **quiet)
    trainer.fit(model, data, **options)
    return trainer


@pytest.mark.parametrize("streaming", [False, True])
def test_bits_per_byte_are_left_out_where_tokens_are_unknown(streaming):
    splits = {"train": ["a cat", "the cat", "a", "cat the"], "validation": ["a dog", "the cat"], "test": ["the", "a"]}
    model, data = (
        LitLanguageModel(LSTM(9), k1=2),
        TextLanesDataModule(splits, tokenizer="word", num_lanes=2, k1=2, eval_num_lanes=2, streaming=streaming),
    )
    trainer = fit(data, model)
    metrics = trainer.callback_metrics
    assert {"val/nats_per_token", "val/perplexity", "val/accuracy", "train/bits_per_byte"} < set(metrics)
    assert "val/bits_per_byte" not in metrics
    (tested,) = trainer.test(model, data, verbose=False)
    # Four tokens, two of them <eos>, for four bytes.
    assert tested["test/bits_per_byte"] == pytest.approx(tested["test/nats_per_token"] / math.log(2))


def test_the_tokenizers_of_model_and_data_are_named_in_this_order(tmp_path):
    bytes_, words = (
        TextLanesDataModule(corpus(*TEXTS, "some words"), num_lanes=3, k1=5, tokenizer=name, val_fraction=0)
        for name in ("byte", "word")
    )
    trainer = fit(bytes_)
    trainer.save_checkpoint(tmp_path / "bytes.ckpt", weights_only=False)
    message = (
        r"the data have a word tokenizer with a vocabulary of 25, "
        r"the model was trained with a byte tokenizer with a vocabulary of 257"
    )
    with pytest.raises(InputError, match=message):
        fit(words, ckpt_path=tmp_path / "bytes.ckpt")
    with pytest.raises(InputError, match=message):
        fit(words, LitLanguageModel.load_from_checkpoint(tmp_path / "bytes.ckpt"))


class Waiting(ByteTokenizer):
    """Says that it has begun, and never ends."""

    def encode(self, texts):
        Path("begun").touch()
        time.sleep(10**6)


def fit_without_end(cache):
    fit(TextLanesDataModule(corpus("abc"), tokenizer=Waiting(), val_fraction=0, cache_dir=str(cache)))


def test_an_interrupt_while_the_corpus_is_tokenized_leaves_nothing(tmp_path):
    log = tmp_path / "log"
    process = start(fit_without_end, tmp_path / "cache", log=log, folder=tmp_path)
    try:
        wait_until((tmp_path / "begun").exists, log.read_text)
        os.kill(process.pid, signal.SIGINT)
        assert status_of(process) == 128 + signal.SIGINT, log.read_text()
    finally:
        process.kill()
        process.join()
    assert log.read_text().count("stopped by SIGINT while the corpus was prepared") == 1
    assert "Traceback" not in log.read_text()
    assert [path.name for path in (tmp_path / "cache" / "lit_tbptt").iterdir()] == ["builds.lock"]


def test_data_from_python_are_not_mistaken_for_the_default_corpus():
    assert TextLanesDataModule(DatasetDict(train=corpus("ab"))).hparams.path == "<DatasetDict>"
    kept = TextLanesDataModule(corpus("ab"), tokenizer=ByteTokenizer()).hparams
    assert (kept.path, kept.tokenizer) == ("<Dataset>", "<ByteTokenizer>")
    with pytest.raises(InputError, match=r"data\.path='<Dataset>': the data were handed over from Python"):
        TextLanesDataModule(kept.path).setup("fit")


@pytest.mark.parametrize("argument", ["num_lanes", "k1", "windows_per_batch", "eval_num_lanes"])
def test_numbers_below_one_are_refused(argument):
    with pytest.raises(InputError, match=rf"data\.{argument}=0: must be 1 or more"):
        TextLanesDataModule(**{argument: 0})


def test_an_empty_corpus_and_too_few_tokens_are_refused(tmp_path):
    with pytest.raises(InputError, match="train split of the corpus has no text, only 2 empty documents"):
        TextLanesDataModule(corpus("", ""), val_fraction=0, cache_dir=str(tmp_path)).setup("fit")
    few = DatasetDict(train=corpus("abcdef"), validation=corpus("ab"))
    with pytest.raises(InputError, match=r"data\.num_lanes=8: the train split has 7 tokens"):
        TextLanesDataModule(few, num_lanes=8).setup("fit")
    with pytest.raises(InputError, match=r"data\.eval_num_lanes=16: the validation split has 3 tokens"):
        TextLanesDataModule(few, num_lanes=7).setup("fit")


def small(**options):
    """Documents of 0 to 17 letters."""
    return TextLanesDataModule(DatasetDict(train=corpus(*TEXTS), validation=corpus(*TEXTS[3:9])), **options)


TEXTS = [chr(97 + i) * (i * i % 19) for i in range(23)]


@pytest.mark.parametrize("document_reset", [False, True])
def test_validation_is_the_same_in_both_kinds_of_lanes(document_reset):
    found = []
    for streaming in (False, True):
        torch.manual_seed(3)
        options = {"num_lanes": 3, "eval_num_lanes": 1, "k1": 5, "document_reset": document_reset}
        data = small(streaming=streaming, **options)
        model = LitLanguageModel(LSTM(9), k1=5)
        model._build(ByteTokenizer())
        model.log_dict = lambda values, **options: found.append(dict(values))
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        Trainer(accelerator="cpu", precision="64-true", **quiet).validate(model, data, verbose=False)
    assert found[0]["val/num_targets"] == found[1]["val/num_targets"] == sum(len(text) + 1 for text in TEXTS[3:9])
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, abs=1e-12), name


def test_the_settings_reach_the_lanes():
    data = small(num_lanes=6, num_readers=3, streaming=True, shuffle=True, repeat=True, seed=4, k1=5)
    data.setup("fit")
    lanes = data.train_dataloader()
    assert (lanes.num_readers, lanes.shuffle_seed, lanes.repeat, lanes.document_reset) == (3, 4, True, False)
    evaluated = data.val_dataloader()
    assert (evaluated.num_readers, evaluated.shuffle_seed, evaluated.repeat, evaluated.k1) == (1, None, False, 40)
    data = small(num_lanes=6, document_reset=True, shuffle=True, rotate_lanes=True, seed=4, k1=5)
    data.setup("fit")
    lanes = data.train_dataloader()
    assert (lanes.shuffle_seed, lanes.rotation_seed, lanes.document_reset) == (4, 4, True)
    evaluated = data.val_dataloader()
    assert (evaluated.shuffle_seed, evaluated.rotation_seed, evaluated.document_reset, evaluated.k1) == (
        None,
        None,
        True,
        5,
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_the_summary_shows_that_lanes_run_on(streaming, capfd, caplog):
    with caplog.at_level("INFO"):
        small(num_lanes=2, k1=4, streaming=streaming).setup("fit")
    text = caplog.text + capfd.readouterr().err
    if streaming:
        assert "train       streamed from 23 shards" in text
        assert re.search(r"2 lanes \(num_readers 1\), 0\.\d{3} bytes/token at the start; windows of 4 tokens", text)
        assert "  lane 0, window 0: 'b\\ndd'\n  lane 0, window 1: 'dddd'\n  lane 1, window 0: 'cccc'" in text
    else:
        assert "train                   21" in text
        assert "(2 empty documents left out)" in text
        assert "  lane 0, window 0: 'b\\ncc'\n  lane 0, window 1: 'cc\\nd'\n  lane 1, window 0: " in text


def test_a_stream_of_one_document_leaves_lanes_empty_and_says_so(capfd, caplog):
    with caplog.at_level("INFO"):
        TextLanesDataModule(corpus("a" * 99), streaming=True, num_lanes=3, k1=4).setup("fit")
    assert "2 of 3 lanes get no document at the start" in caplog.text + capfd.readouterr().err


@pytest.mark.parametrize("tokenizer", ["char", "word", "bpe"])
def test_a_vocabulary_can_be_read_from_a_stream(tokenizer):
    descriptions = []
    for streaming in (False, True):
        data = small(tokenizer=tokenizer, streaming=streaming, num_lanes=3, eval_num_lanes=2)
        data.setup("fit")
        descriptions.append(data.tokenizer.describe())
    assert descriptions[0] == descriptions[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_readers": 2}, r"data\.num_readers=2, .* with data\.streaming=False: .*leave them out"),
        ({"repeat": True}, r"data\.repeat=True with data\.streaming=False"),
        ({"rotate_lanes": True, "streaming": True}, r"data\.rotate_lanes=True with data\.streaming=True"),
        ({"seed": -1}, r"data\.seed=-1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        TextLanesDataModule(**options)


def test_a_stream_object_needs_streaming_and_its_column():
    rows = corpus(*TEXTS).to_iterable_dataset(3)
    with pytest.raises(InputError, match=r"IterableDataset, with data\.streaming=False: set data\.streaming to true"):
        TextLanesDataModule(rows).setup("fit")
    with pytest.raises(InputError, match=r"data\.text_column='body': the dataset has no such column; it has text"):
        TextLanesDataModule(rows, text_column="body", streaming=True).setup("fit")
    with pytest.raises(InputError, match=r"data\.num_readers=3 with num_lanes=8: the readers divide the lanes evenly"):
        TextLanesDataModule(rows, num_lanes=8, num_readers=3, streaming=True).setup("fit")
    with pytest.raises(InputError, match=r"data\.num_readers=4: the train split has 3 shards .*set num_readers to 3"):
        TextLanesDataModule(rows, num_lanes=8, num_readers=4, streaming=True).setup("fit")
