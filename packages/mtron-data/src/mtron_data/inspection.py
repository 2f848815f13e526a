"""What `mtron-data inspect` shows."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from mtron_data.indexed.dataset import TokenDataset
from mtron_data.tokenizer.huggingface import load_tokenizer


def describe(path: str | Path, document: int, num_tokens: int) -> None:
    """Print counts, and the beginning of a document.

    Args:
        path: a prepared dataset.
        document: which one, from 0.
        num_tokens: at most so many of its tokens.

    Raises:
        ValueError: the dataset is damaged, or has no such document.
        OSError: a file cannot be read.
    """
    dataset = TokenDataset(path)
    if document >= len(dataset):
        raise ValueError(
            f"document: {path} has {len(dataset)} of them, counted from 0, got {document}"
        )
    console = Console(soft_wrap=True, highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _facts(dataset).items():
        table.add_row(name, value)
    console.print(table)
    ids = dataset[document][:num_tokens].tolist()
    title = f"document {document}: {len(ids)} of {len(dataset[document])} tokens"
    console.print(f"\n{title}\n", markup=False)
    if dataset.manifest is None:
        console.print(ids, markup=False)
    else:
        text = load_tokenizer(dataset.prefix.parent).decode(ids)
        console.print(text, markup=False, emoji=False)


def _facts(dataset: TokenDataset) -> dict[str, str]:
    facts = {
        "documents": f"{dataset.num_documents:,}",
        "sequences": f"{dataset.num_sequences:,}",
        "tokens": f"{dataset.num_tokens:,}",
        "dtype": dataset.dtype.name,
    }
    manifest = dataset.manifest
    if manifest is not None:
        facts |= {
            "empty documents": f"{manifest.num_empty_documents:,}",
            "bytes of text": f"{manifest.text_bytes:,}",
            "bytes per token": f"{manifest.text_bytes / manifest.num_tokens:.3f}",
            "vocabulary": f"{manifest.tokenizer.vocab_size:,}",
            "end of document": f"{manifest.tokenizer.eos_id}"
            + ("" if manifest.append_eos else " (not appended)"),
            "tokenizer": manifest.tokenizer.fingerprint[:12],
            "sources": ", ".join(source.path for source in manifest.sources[:5])
            + (f" and {len(manifest.sources) - 5} more" if len(manifest.sources) > 5 else ""),
        }
    return facts
