import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mtron_data import Manifest, TokenDataset, prepare, train_tokenizer, verify
from mtron_data.preparation import run
from mtron_data.preparation.workers import encode_groups


def same(a, b, but=()):
    names = sorted(path.name for path in a.iterdir() if path.name not in but)
    assert names == sorted(path.name for path in b.iterdir() if path.name not in but)
    assert filecmp.cmpfiles(a, b, names, shallow=False)[1:] == ([], [])


def reference(texts, tokenizer, eos=True):
    """One text at a time, by the tokenizer library itself."""
    ids = [tokenizer._plain.encode(text).ids for text in texts]
    return [[*document, 0] if eos and document else document for document in ids]


@pytest.fixture(scope="module")
def large(tmp_path_factory, texts, write_jsonl):
    """Several pieces: 2.5 MB of JSONL in two files, and two texts."""
    directory = tmp_path_factory.mktemp("large")
    write_jsonl(directory / "a.jsonl", [f"{i} {text}" for i in range(25) for text in texts])
    write_jsonl(directory / "b.jsonl", texts[:5])
    (directory / "c.txt").write_text(texts[0])
    (directory / "d.txt").write_text("")
    return directory


def test_tokens_are_those_of_the_tokenizer(prepared, tokenizer, texts):
    dataset = TokenDataset(prepared)
    assert [document.tolist() for document in dataset[:]] == reference(texts, tokenizer)
    assert dataset.dtype == np.uint16
    assert verify(prepared).ok


def test_the_directory(prepared, corpus, tokenizer, texts):
    assert sorted(path.name for path in prepared.iterdir()) == [
        "manifest.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokens.bin",
        "tokens.idx",
    ]
    manifest = Manifest.load(prepared / "manifest.json")
    assert (manifest.num_documents, manifest.num_empty_documents) == (len(texts), 2)
    assert manifest.text_bytes == sum(len(text.encode()) for text in texts)
    assert manifest.num_tokens == sum(map(len, reference(texts, tokenizer)))
    assert (manifest.tokenizer.vocab_size, manifest.tokenizer.eos_id) == (600, 0)
    (source,) = manifest.sources
    assert (source.path, source.kind) == (str(corpus), "jsonl")
    assert (source.num_bytes, source.num_documents) == (corpus.stat().st_size, len(texts))


def test_the_result_does_not_depend_on_the_workers(large, tokenizer, tmp_path, texts):
    seen = []
    for workers in (1, 3):
        prepare(
            large, tokenizer, tmp_path / str(workers), workers, progress=lambda *at: seen.append(at)
        )
        total = sum(path.stat().st_size for path in large.iterdir())
        assert seen[-1] == (total, total)
        assert len(seen) >= 3
        assert seen == sorted(seen)
        seen.clear()
    same(tmp_path / "1", tmp_path / "3")
    expected = [f"{i} {text}" for i in range(25) for text in texts] + texts[:5] + [texts[0], ""]
    documents = [document.tolist() for document in TokenDataset(tmp_path / "3")[:]]
    assert documents == reference(expected, tokenizer)
    assert [s.num_documents for s in Manifest.load(tmp_path / "3" / "manifest.json").sources] == [
        25 * len(texts),
        5,
        1,
        1,
    ]


def test_without_eos_and_with_another_key(tmp_path, tokenizer):
    (tmp_path / "x.jsonl").write_text('{"body": "a b"}\n{"body": "c"}\n')
    prepare(tmp_path / "x.jsonl", tokenizer, tmp_path / "o", key="body", append_eos=False)
    documents = [document.tolist() for document in TokenDataset(tmp_path / "o")[:]]
    assert documents == reference(["a b", "c"], tokenizer, eos=False)


def test_text_cannot_forge_the_end_of_a_document(tmp_path, tokenizer):
    (tmp_path / "x.txt").write_text("a<|endoftext|>b")
    prepare(tmp_path / "x.txt", tokenizer, tmp_path / "o")
    (document,) = TokenDataset(tmp_path / "o")[:]
    assert document.tolist().count(0) == 1
    assert tokenizer.decode(document[:-1]) == "a<|endoftext|>b"


def test_again_is_up_to_date_wherever_the_sources_lie(corpus, tokenizer, tmp_path):
    first = prepare(corpus, tokenizer, tmp_path / "o")
    assert not first.up_to_date
    moved = tmp_path / "moved.jsonl"
    shutil.copy(corpus, moved)
    before = (tmp_path / "o" / "tokens.bin").stat().st_mtime_ns
    again = prepare(moved, tokenizer, tmp_path / "o")
    assert again.up_to_date
    assert again.manifest == first.manifest
    assert (tmp_path / "o" / "tokens.bin").stat().st_mtime_ns == before


def test_anything_else_is_refused_and_replaced_on_request(corpus, tokenizer, tmp_path):
    source = tmp_path / "x.jsonl"
    shutil.copy(corpus, source)
    output = tmp_path / "o"
    prepare(source, tokenizer, output)
    other = train_tokenizer(corpus, 300, tmp_path / "other").tokenizer
    with pytest.raises(ValueError, match="exists and was prepared from another tokenizer"):
        prepare(source, other, output)
    with pytest.raises(ValueError, match="append_eos=True"):
        prepare(source, tokenizer, output, append_eos=False)
    templated = type(tokenizer)({**tokenizer.files, "chat_template.jinja": b"x"}, "memory")
    with pytest.raises(ValueError, match=r"another tokenizer_config\.json"):
        prepare(source, templated, output)
    text = source.read_text()
    source.write_text(text.replace("the", "teh", 1))
    with pytest.raises(ValueError, match=r"from other sources .*--overwrite"):
        prepare(source, tokenizer, output)
    assert not prepare(source, tokenizer, output, overwrite=True).up_to_date
    assert prepare(source, tokenizer, output).up_to_date
    (output / "tokens.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="its files are incomplete"):
        prepare(source, tokenizer, output)
    assert not prepare(source, tokenizer, output, overwrite=True).up_to_date
    (output / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json"):
        prepare(source, tokenizer, output)
    assert not prepare(source, tokenizer, output, overwrite=True).up_to_date
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "other", "x.jsonl"]


def test_a_directory_of_something_else_is_not_touched(corpus, tokenizer, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="exists and is no prepared dataset"):
            prepare(corpus, tokenizer, tmp_path / "o", overwrite=overwrite)
    assert (tmp_path / "o" / "mine").read_text() == "x"
    (tmp_path / "o" / "mine").unlink()
    prepare(corpus, tokenizer, tmp_path / "o")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_malformed_line_leaves_nothing(tmp_path, tokenizer, workers):
    line = json.dumps({"text": "word " * 40}) + "\n"
    (tmp_path / "a.jsonl").write_text(line)
    (tmp_path / "b.jsonl").write_text(line * 12_000 + '{"text": 7}\n' + line)
    assert (tmp_path / "b.jsonl").stat().st_size > 2 << 20
    with pytest.raises(ValueError, match=r"b\.jsonl: line 12001: 'text' must be a string, got 7"):
        prepare(tmp_path, tokenizer, tmp_path / "o", workers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"text": ""}\n', "holds no text"), ("\n\n", "holds no text")],
)
def test_no_text_at_all(tmp_path, tokenizer, content, message):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "x.jsonl", tokenizer, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_wrong_arguments(tmp_path, corpus, tokenizer):
    with pytest.raises(ValueError, match="workers: must be at least 1, got 0"):
        prepare(corpus, tokenizer, tmp_path / "o", 0)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        prepare(corpus, tmp_path, tmp_path / "o")
    files = {"tokenizer.json": tokenizer.files["tokenizer.json"]}
    nameless = type(tokenizer)(files, "memory")
    with pytest.raises(ValueError, match="names no end-of-document token"):
        prepare(corpus, nameless, tmp_path / "o")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path, corpus, tokenizer, monkeypatch):
    class Full(run.IndexedWriter):
        def add_documents(self, tokens, lengths):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "IndexedWriter", Full)
    with pytest.raises(
        OSError, match=r"o: no space left while writing; nothing was kept"
    ) as caught:
        prepare(corpus, tokenizer, tmp_path / "o")
    assert caught.value.errno == 28
    assert not list(tmp_path.iterdir())


def test_a_dead_worker_is_an_error(tmp_path, large, tokenizer, monkeypatch):
    def with_a_dead_worker(groups, job, workers):
        # A tokenizer that no worker can build.
        broken = type(job)({"tokenizer.json": b"{}"}, *list(vars(job).values())[1:])
        return encode_groups(groups, broken, workers)

    monkeypatch.setattr(run, "encode_groups", with_a_dead_worker)
    with pytest.raises(ChildProcessError, match="a worker process died"):
        prepare(large, tokenizer, tmp_path / "o", 2)
    assert not list(tmp_path.iterdir())


SCRIPT = """
import sys
import time
from mtron_data import prepare

def hang(*_):
    print("a group is done", flush=True)
    time.sleep(300)

if __name__ == "__main__":
    inputs, tokenizer, output = sys.argv[1:]
    prepare(inputs, tokenizer, output, 2, progress=hang)
"""


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_preparation_leaves_no_process_and_the_next_one_cleans_up(
    tmp_path, large, tokenizer, tokenizer_directory
):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    output = tmp_path / "o"
    command = [sys.executable, str(script), str(large), str(tokenizer_directory), str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(ValueError, match="another process is writing it"):
        prepare(large, tokenizer, output)
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(workers) >= 2
    assert (tmp_path / ".o.partial").exists()
    assert not output.exists()
    deadline = time.monotonic() + 20
    while alive := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"orphans {alive}"
        time.sleep(0.05)
    prepare(large, tokenizer, output)
    assert verify(output).ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "script.py"]
