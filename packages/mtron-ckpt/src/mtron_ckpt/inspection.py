"""What `mtron-ckpt inspect` prints about a checkpoint."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from mtron_ckpt.reading import Checkpoint

_SUMMARY_CHARACTERS = 70
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def describe_checkpoint(checkpoint: Checkpoint, steps: Sequence[int]) -> Tree:
    """Return a tree of what a checkpoint holds.

    Args:
        checkpoint: the step to describe.
        steps: committed steps of the root it was found in, if it was found in one.
    """
    names = checkpoint.names()
    size = sum(checkpoint.info(name).size_bytes for name in names)
    tree = Tree(f"[bold]{escape(str(checkpoint.path))}[/bold]")
    tree.add(f"step {checkpoint.step}, {_count(names)}, {format_bytes(size)}")
    if steps:
        tree.add(f"committed steps here: {', '.join(map(str, steps))}")
    _add_values(tree.add("config"), checkpoint.config)
    _add_values(tree.add("layout"), checkpoint.layout)
    state = tree.add("state")
    for name, value in checkpoint.state.items():
        state.add(escape(f"{name}: {_summary(value)}"))
    assets = tree.add("assets")
    for name, content in checkpoint.assets.items():
        assets.add(escape(f"{name}: {format_bytes(len(content))}"))
    for kind in dict.fromkeys(name.partition("/")[0] for name in names):
        _add_arrays(tree, checkpoint, kind, checkpoint.names(kind))
    return tree


def _add_arrays(tree: Tree, checkpoint: Checkpoint, kind: str, names: list[str]) -> None:
    infos = {name: checkpoint.info(name) for name in names}
    elements = sum(info.size_bytes // info.dtype.itemsize for info in infos.values())
    size = sum(info.size_bytes for info in infos.values())
    branch = tree.add(
        f"[bold]{kind}[/bold]: {_count(names)}, {elements:,} elements, {format_bytes(size)}"
    )
    for name, info in infos.items():
        shape = ", ".join(map(str, info.shape))
        parameter = name.partition("/")[2]
        line = f"{parameter}  {info.dtype} [{shape}]  {format_bytes(info.size_bytes)}"
        branch.add(escape(line))


def _add_values(tree: Tree, values: dict[str, Any]) -> None:
    for key, value in values.items():
        tree.add(escape(f"{key}: {_summary(value)}"))


def _count(names: list[str]) -> str:
    return "1 array" if len(names) == 1 else f"{len(names)} arrays"


def _summary(value: Any) -> str:
    text = ", ".join(_pairs(value)) if isinstance(value, dict) else str(value)
    if len(text) > _SUMMARY_CHARACTERS:
        text = text[: _SUMMARY_CHARACTERS - 3] + "..."
    return text


def _pairs(values: dict[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        yield f"{key}={'{...}' if isinstance(value, dict) else value}"


def format_bytes(count: int) -> str:
    """Return a size with a binary unit, for people."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"
