"""Tokenizers, corpus preparation, Megatron-compatible indexed datasets, resumable loaders."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtron_data.batch import Batch as Batch
    from mtron_data.batch import Sample as Sample
    from mtron_data.gpt import GPTDataset as GPTDataset
    from mtron_data.indexed.check import Violation as Violation
    from mtron_data.indexed.dataset import TokenDataset as TokenDataset
    from mtron_data.indexed.layout import token_dtype as token_dtype
    from mtron_data.indexed.verify import VerifyReport as VerifyReport
    from mtron_data.indexed.verify import verify as verify
    from mtron_data.indexed.writer import IndexedWriter as IndexedWriter
    from mtron_data.loader import Loader as Loader
    from mtron_data.manifest import Manifest as Manifest
    from mtron_data.preparation.run import Prepared as Prepared
    from mtron_data.preparation.run import prepare as prepare
    from mtron_data.text.documents import read_documents as read_documents
    from mtron_data.text.sources import Source as Source
    from mtron_data.text.sources import find_sources as find_sources
    from mtron_data.tokenizer.huggingface import HuggingFaceTokenizer as HuggingFaceTokenizer
    from mtron_data.tokenizer.huggingface import load_tokenizer as load_tokenizer
    from mtron_data.tokenizer.protocol import Tokenizer as Tokenizer
    from mtron_data.tokenizer.training import TrainedTokenizer as TrainedTokenizer
    from mtron_data.tokenizer.training import train_tokenizer as train_tokenizer

__all__ = [
    "Batch",
    "GPTDataset",
    "HuggingFaceTokenizer",
    "IndexedWriter",
    "Loader",
    "Manifest",
    "Prepared",
    "Sample",
    "Source",
    "TokenDataset",
    "Tokenizer",
    "TrainedTokenizer",
    "VerifyReport",
    "Violation",
    "find_sources",
    "load_tokenizer",
    "prepare",
    "read_documents",
    "token_dtype",
    "train_tokenizer",
    "verify",
]
_MODULES = {
    "Batch": "mtron_data.batch",
    "GPTDataset": "mtron_data.gpt",
    "HuggingFaceTokenizer": "mtron_data.tokenizer.huggingface",
    "IndexedWriter": "mtron_data.indexed.writer",
    "Loader": "mtron_data.loader",
    "Manifest": "mtron_data.manifest",
    "Prepared": "mtron_data.preparation.run",
    "Sample": "mtron_data.batch",
    "Source": "mtron_data.text.sources",
    "TokenDataset": "mtron_data.indexed.dataset",
    "Tokenizer": "mtron_data.tokenizer.protocol",
    "TrainedTokenizer": "mtron_data.tokenizer.training",
    "VerifyReport": "mtron_data.indexed.verify",
    "Violation": "mtron_data.indexed.check",
    "find_sources": "mtron_data.text.sources",
    "load_tokenizer": "mtron_data.tokenizer.huggingface",
    "prepare": "mtron_data.preparation.run",
    "read_documents": "mtron_data.text.documents",
    "token_dtype": "mtron_data.indexed.layout",
    "train_tokenizer": "mtron_data.tokenizer.training",
    "verify": "mtron_data.indexed.verify",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
