"""What must be on the disk before a step appears, seen from the system calls."""

import os
from pathlib import Path

import pytest

PROC = Path("/proc/self/fd")


@pytest.mark.skipif(not PROC.exists(), reason="needs Linux's /proc")
def test_everything_is_synced_before_the_rename(tmp_path, save, values, monkeypatch):
    events: list[tuple[str, str]] = []

    def record(name):
        real = getattr(os, name)

        def call(first, *rest, **named):
            place = str((PROC / str(first)).readlink()) if isinstance(first, int) else str(first)
            events.append((name, place))
            return real(first, *rest, **named)

        monkeypatch.setattr(os, name, call)

    for name in ("pwrite", "fsync", "rename", "replace"):
        record(name)
    root = tmp_path / "new" / "root"
    path = save(root, values(0))
    (renamed,) = [n for n, event in enumerate(events) if event[0] == "rename"]
    temporary = events[renamed][1]
    before, after = events[:renamed], events[renamed + 1 :]
    files = {str(p.relative_to(path)) for p in path.rglob("*")} | {"."}
    for name in files:
        place = os.path.normpath(f"{temporary}/{name}")
        last = max(n for n, event in enumerate(before) if event[1] == place)
        assert before[last][0] == "fsync", f"{name} is written after it was synced"
    commit = before.index(("pwrite", f"{temporary}/COMMIT"))
    manifest = before.index(("fsync", f"{temporary}/MANIFEST.json"))
    assert manifest < commit
    for name in files - {".", "COMMIT", "MANIFEST.json", "data", "state", "assets"}:
        assert before.index(("fsync", f"{temporary}/{name}")) < commit
    assert ("fsync", str(tmp_path / "new")) in before, "the new root itself"
    assert ("fsync", str(tmp_path)) in before, "and its new parent"
    assert after[0] == ("fsync", str(root))
    hint = [event[0] for event in after[1:]]
    assert hint == ["pwrite", "fsync", "replace", "fsync"]
