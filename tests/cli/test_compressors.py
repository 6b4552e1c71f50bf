import gzip
import lzma

from datasets import Dataset

from lit_tbptt.cli.compressors import compressor_bits_per_byte


def test_sizes_are_those_of_all_documents_compressed_at_once(capfd):
    documents = [f"{i * i % 1009} " * (i % 7) + "é" * (i % 3) for i in range(90_001)]
    text = "".join(documents).encode()
    assert len(text) > (1 << 20) + 1  # more than is compressed between two updates of the bar
    sizes = {"gzip -9": len(gzip.compress(text, 9)), "xz": len(lzma.compress(text))}
    found = compressor_bits_per_byte(Dataset.from_dict({"text": documents}))
    assert found == {name: 8 * size / len(text) for name, size in sizes.items()}
    assert capfd.readouterr().err == ""  # no terminal, no bar
