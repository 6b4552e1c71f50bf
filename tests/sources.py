"""Documents to be streamed: made by a generator, mixed, repeated, and in files of every kind."""

from datasets import Dataset, IterableDataset, interleave_datasets

from lit_tbptt.data import load_documents


def shards(names):
    for name in names:
        for number in range(5):
            yield {"text": name * (number * 3 % 7), "number": number}


def a_generator():
    return IterableDataset.from_generator(shards, gen_kwargs={"names": list("abcdefg")})


def a_mixture():
    stored = Dataset.from_dict({"text": [letter * 4 for letter in "hijklmnop"]}).to_iterable_dataset(3)
    mapped = a_generator().map(lambda row: {"text": row["text"] + "z"}, remove_columns=["number"])
    return interleave_datasets([mapped, stored], probabilities=[0.6, 0.4], seed=7)


def files(kind):
    def write(folder):
        texts = [chr(97 + i % 26) * (i * i % 19) for i in range(60)]
        for number in range(4):
            rows = Dataset.from_dict({"text": texts[number * 15 : (number + 1) * 15]})
            if kind == "parquet":
                rows.to_parquet(folder / f"{number}.parquet", batch_size=4)
            elif kind == "json":
                rows.to_json(folder / f"{number}.jsonl")
            else:
                (folder / f"{number}.txt").write_text("\n".join(rows["text"]) + "\n")
        return load_documents(str(folder), streaming=True, load_options={"sample_by": "line"} if kind == "text" else {})

    return write


SOURCES = {
    "generator": lambda folder: {"train": a_generator()},
    "mixture": lambda folder: {"train": a_mixture()},
    "repeated": lambda folder: {"train": a_generator().repeat(2)},
    "parquet": files("parquet"),
    "json": files("json"),
    "text": files("text"),
}
