import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

import mtron_data
from mtron_data import (
    HuggingFaceTokenizer,
    IndexedWriter,
    TokenDataset,
    load_tokenizer,
    prepare,
    train_tokenizer,
)

# A busy machine must not fail a test.
settings.register_profile("mtron-data", deadline=None)
settings.load_profile("mtron-data")


@pytest.fixture(autouse=True)
def _single_threaded(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Real text: the package's own sources, a few other scripts, and empty documents."""
    root = Path(mtron_data.__file__).parent
    documents = [path.read_text("utf-8") for path in sorted(root.rglob("*.py"))]
    return [*documents, "", "naïve Ελληνικά 数学 עברית 🙂\r\n\tx\u2028y\n", "", "end"]


@pytest.fixture(scope="session")
def write_jsonl() -> Callable[[Path, Sequence[str]], Path]:
    def write(path: Path, texts: Sequence[str]) -> Path:
        lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, texts, write_jsonl) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "texts.jsonl", texts)


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory, corpus) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer") / "bpe"
    train_tokenizer(corpus, 600, directory)
    return directory


@pytest.fixture(scope="session")
def tokenizer(tokenizer_directory) -> HuggingFaceTokenizer:
    return load_tokenizer(tokenizer_directory)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, corpus, tokenizer_directory) -> Path:
    """A prepared dataset; tests that damage one take a copy."""
    output = tmp_path_factory.mktemp("prepared") / "data"
    prepare(corpus, tokenizer_directory, output)
    return output


@pytest.fixture
def write_pair(tmp_path) -> Callable[..., TokenDataset]:
    """Write documents as a bare pair and open it."""

    def write(documents: Sequence[Sequence[int]], dtype: str = "<u2", name: str = "pair"):
        with IndexedWriter(tmp_path / name, np.dtype(dtype)) as writer:
            for document in documents:
                writer.add_document(
                    np.array(document, np.int64), [len(document)] if document else []
                )
        return TokenDataset(tmp_path / name)

    return write
