import json
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from mtron_data import prepare, train_tokenizer

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _prepare(root, sources, vocab_size):
    lines = [json.dumps({"text": path.read_text("utf-8")}) for path in sources]
    (root / "train.jsonl").write_text("\n".join(lines) + "\n")
    text, tokenizer = str(root / "train.jsonl"), str(root / "tokenizer")
    train_tokenizer([text], vocab_size=vocab_size, output=tokenizer)
    prepare([text], tokenizer=tokenizer, output=str(root / "train"), workers=1)
    return root


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A small dataset of real text."""
    folder = Path(sysconfig.get_paths()["stdlib"]) / "json"
    return _prepare(tmp_path_factory.mktemp("corpus"), sorted(folder.glob("*.py")), 512)


@pytest.fixture(scope="session")
def large_corpus(tmp_path_factory):
    """One whose tokenizer has the example's vocabulary."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return _prepare(tmp_path_factory.mktemp("large"), sorted(folder.glob("[a-p]*.py")), 4096)
