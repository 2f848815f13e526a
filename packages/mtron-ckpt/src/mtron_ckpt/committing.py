"""The files beside the array data, written last, and the commit."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from mtron_ckpt.index import INDEX_FILE, Written, build_index, dump_index
from mtron_ckpt.manifest import (
    COMMIT_FILE,
    FORMAT,
    MANIFEST_FILE,
    TENSORSTORE_FILE,
    VERSION,
    FileRecord,
    Manifest,
    describe,
    dump_commit,
    dump_manifest,
)
from mtron_ckpt.plan import SavePlan
from mtron_ckpt.storage import sync_directory, write_file
from mtron_ckpt.tensorstore_spec import tensorstore_document


def write_documents(directory: Path, plan: SavePlan, written: Sequence[Written]) -> None:
    """Complete a step's directory around the data files that are in it, durably.

    Args:
        directory: where the step is being written.
        plan: the save.
        written: what each writer has written, by rank.

    Raises:
        ValueError: the writers have not written every array exactly once.
        OSError: the system refused.
    """
    index = dump_index(build_index(plan.forms, written))
    spec = tensorstore_document(plan.forms, written)
    files = {TENSORSTORE_FILE: spec} | plan.files | {INDEX_FILE: index}
    for name in sorted({Path(name).parent for name in files} - {Path()}):
        (directory / name).mkdir()
    for name, content in files.items():
        write_file(directory / name, content)
    data = [one.file for one in written if one.file is not None]
    manifest = dump_manifest(_manifest(plan, data, files))
    write_file(directory / MANIFEST_FILE, manifest)
    write_file(directory / COMMIT_FILE, dump_commit(manifest))
    for path in directory.iterdir():
        if path.is_dir():
            sync_directory(path)
    sync_directory(directory)


def _manifest(plan: SavePlan, data: Sequence[FileRecord], files: dict[str, bytes]) -> Manifest:
    return Manifest(
        format=FORMAT,
        version=VERSION,
        container="packed",
        producer={"name": "mtron-ckpt", "version": version("mtron-ckpt")},
        step=plan.step,
        config=plan.config,
        layout=plan.layout,
        data=tuple(record.path for record in data),
        files=(*data, *(describe(name, content) for name, content in files.items())),
    )
