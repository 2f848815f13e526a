import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtron_data import Source, find_sources, read_documents
from mtron_data.text.pieces import file_digest, plan_pieces, read_piece, source_digest


def make(directory, **files):
    for name, content in files.items():
        path = directory / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def names(sources, root):
    return [(source.path.relative_to(root).as_posix(), source.kind) for source in sources]


def test_files_keep_their_order_and_folders_are_sorted(tmp_path):
    make(
        tmp_path,
        z_dot_jsonl="{}",
        a_dot_md="x",
        dir__b_dot_txt="x",
        dir__a__c_dot_ndjson="{}",
        dir__tokenizer_dot_json="{}",
        dir___dot_hidden_dot_txt="x",
        dir___dot_git__x_dot_txt="x",
        dir__empty_dot_txt="",
    )
    sources = find_sources([tmp_path / "z.jsonl", tmp_path / "dir", str(tmp_path / "*.md")])
    assert names(sources, tmp_path) == [
        ("z.jsonl", "jsonl"),
        ("dir/a/c.ndjson", "jsonl"),
        ("dir/b.txt", "text"),
        ("dir/empty.txt", "text"),
        ("a.md", "text"),
    ]
    assert find_sources(tmp_path / "dir" / "tokenizer.json")[0].kind == "jsonl"
    recursive = find_sources(f"{tmp_path}/**/*.ndjson")
    assert names(recursive, tmp_path) == [("dir/a/c.ndjson", "jsonl")]


def test_a_name_with_pattern_characters_is_a_file_if_it_exists(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert find_sources(tmp_path / "a[1].txt")[0].path.name == "a[1].txt"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "inputs: no file is named"),
        (["missing.jsonl"], r"missing\.jsonl: no such file or folder"),
        (["*.nothing"], "no file matches this pattern"),
        (["folder"], "holds no .jsonl, .ndjson, .txt, .text file"),
        (["empty.jsonl"], r"empty\.jsonl: is empty"),
        (["one.txt", "one.txt"], "is named twice"),
        (["one.txt", "*.txt"], "is named twice"),
        (["packed.jsonl.gz"], ".gz files are not read"),
        (["table.parquet"], ".parquet files are not read"),
    ],
)
def test_wrong_inputs(tmp_path, monkeypatch, inputs, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, folder__x_dot_md="x", empty_dot_jsonl="", one_dot_txt="x")
    make(tmp_path, packed_dot_jsonl_dot_gz="x", table_dot_parquet="x")
    with pytest.raises(ValueError, match=message):
        find_sources(inputs)


LINES = st.lists(
    st.one_of(
        st.text(max_size=12).map(lambda text: json.dumps({"text": text}).encode()),
        st.text(max_size=12).map(
            lambda text: json.dumps({"text": text}, ensure_ascii=False).encode("utf-8")
        ),
        st.sampled_from([b"", b"   ", b"\r", b"\t"]),
    ),
    max_size=12,
)


@given(lines=LINES, last_newline=st.booleans(), block=st.integers(1, 40))
def test_pieces_of_any_size_hold_each_document_once(tmp_path_factory, lines, last_newline, block):
    path = tmp_path_factory.mktemp("pieces") / "x.jsonl"
    data = b"\n".join(lines) + (b"\n" if last_newline else b"")
    path.write_bytes(data)
    source = Source(path, "jsonl", len(data))
    texts, num_lines = [], 0
    for group in plan_pieces([source], block):
        for piece in group:
            documents = read_piece(piece, "text")
            assert documents.error is None
            texts += documents.texts
            num_lines += documents.num_lines
    assert texts == [json.loads(line)["text"] for line in lines if line.strip()]
    split = data.split(b"\n")
    assert num_lines == len(split) - (not split[-1])


def test_groups_hold_about_a_block(tmp_path):
    sizes = [(3, "text"), (25, "jsonl"), (40, "text"), (0, "text"), (4, "text"), (0, "jsonl")]
    sources = [
        Source(tmp_path / str(i), kind, size)
        for i, (size, kind) in enumerate(sizes)  # type: ignore[arg-type]
    ]
    groups = [
        [(piece.source, piece.start, piece.stop) for piece in group]
        for group in plan_pieces(sources, 10)
    ]
    assert groups == [
        [(0, 0, 3), (1, 0, 10)],
        [(1, 10, 20)],
        [(1, 20, 25), (2, 0, 40)],
        [(3, 0, 0), (4, 0, 4), (5, 0, 0)],
    ]


def test_digests_of_pieces_join_to_that_of_the_file(tmp_path):
    for kind, name in (("jsonl", "x.jsonl"), ("text", "x.txt")):
        path = tmp_path / name
        path.write_bytes((json.dumps({"text": "y" * 1000}) + "\n").encode() * 2500)
        (source,) = find_sources(path)
        assert source.kind == kind
        pieces = [piece for group in plan_pieces([source]) for piece in group]
        assert len(pieces) == (3 if kind == "jsonl" else 1)
        digests = [read_piece(piece, "text").digests for piece in pieces]
        assert file_digest(digests) == source_digest(source)


def test_a_byte_order_mark_is_no_text(tmp_path):
    make(tmp_path, a_dot_txt=b"\xef\xbb\xbfx", b_dot_jsonl=b'\xef\xbb\xbf{"text": "y"}\n')
    assert list(read_documents(find_sources([tmp_path / "a.txt", tmp_path / "b.jsonl"]))) == [
        "x",
        "y",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', "is not JSON: Expecting ',' delimiter"),
        (b"[1, 2]", r"must hold a JSON object, got \[1, 2\]"),
        (b'{"content": "x"}', r"has no key 'text', got \[\"content\"\]; name the key"),
        (b'{"text": 7}', "'text' must be a string, got 7"),
        (b'{"text": null}', "'text' must be a string, got null"),
        (b'{"text": "\\ud800"}', "half a surrogate pair at character 0"),
        (b'{"text": "\xff"}', "is not UTF-8 at byte 10"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"text": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' * 3 + line + b'\n{"text": "fine"}\n')
    documents = read_documents(find_sources(path))
    assert [next(documents) for _ in range(3)] == ["fine"] * 3
    with pytest.raises(ValueError, match=rf"x\.jsonl: line 7: .*{message}"):
        next(documents)


def test_lines_are_counted_across_pieces(tmp_path):
    path = tmp_path / "x.jsonl"
    good = json.dumps({"text": "y" * 90}).encode() + b"\n"
    path.write_bytes(good * 25_000 + b"oops\n")
    assert path.stat().st_size > 2 << 20
    with pytest.raises(ValueError, match="line 25001: is not JSON"):
        list(read_documents(find_sources(path)))


def test_a_text_that_is_not_utf8(tmp_path):
    make(tmp_path, x_dot_txt=b"one\ntwo\n\xff")
    with pytest.raises(ValueError, match=r"x\.txt: line 3: is not UTF-8 at byte 8"):
        list(read_documents(find_sources(tmp_path / "x.txt")))


def test_a_file_that_shrinks_meanwhile(tmp_path):
    make(tmp_path, x_dot_txt="long text")
    sources = find_sources(tmp_path / "x.txt")
    make(tmp_path, x_dot_txt="short")
    with pytest.raises(ValueError, match="became shorter"):
        list(read_documents(sources))
