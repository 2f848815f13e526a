import hashlib

import pytest

from mtron_eval import read_documents


def test_json_lines_with_optional_keys(write_jsonl):
    path = write_jsonl(
        {"text": "a\nb", "path": "x.py", "domain": "code", "license": "MIT"}, {"text": "é"}
    )
    (file,) = read_documents([path])
    assert [(d.text, d.line, d.path, d.domain) for d in file.documents] == [
        ("a\nb", 1, "x.py", "code"),
        ("é", 2, None, None),
    ]
    assert file.documents[1].num_bytes == 2
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_text_file_is_one_document_byte_for_byte(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"a\r\nb\n")
    (file,) = read_documents([path])
    assert [d.text for d in file.documents] == ["a\r\nb\n"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2: not valid JSON"),
        (b'{"text": "a"}\n\n["a"]\n', "line 3: must be a JSON object, got list"),
        (b'{"content": "a"}\n', "line 1: text: missing, got the keys content"),
        (b'{"text": 5}\n', "line 1: text: must be a string, got 5"),
        (b'{"text": "a", "domain": 5}\n', "line 1: domain: must be a string, got 5"),
        (b'{"text": "a"}\n\xff\n', "line 2: not UTF-8"),
        (b'{"text": "\\ud800"}\n', "line 1: text: not valid Unicode"),
        (b"", "is empty"),
        (b'{"text": ""}\n', "holds no text"),
    ],
)
def test_malformed_lines_are_named(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_documents([path])
    assert str(path) in str(caught.value)


def test_missing_files_and_repetitions_are_named(tmp_path, write_jsonl):
    with pytest.raises(ValueError, match=r"nothing\.jsonl: no such file"):
        read_documents([tmp_path / "nothing.jsonl"])
    path = write_jsonl({"text": "a"})
    with pytest.raises(ValueError, match="is named twice"):
        read_documents([path, path])


def test_folders_and_patterns_give_their_files(tmp_path, write_jsonl):
    (tmp_path / "sub").mkdir()
    write_jsonl({"text": "a"}, name="sub/a.jsonl")
    (tmp_path / "sub" / "b.txt").write_text("b")
    (tmp_path / "sub" / "empty.txt").write_text("")
    for name in (tmp_path / "sub", tmp_path / "sub" / "*"):
        assert [d.text for f in read_documents([name]) for d in f.documents] == ["a", "b", ""]


def test_a_text_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("né".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt: not UTF-8, got b'\\xe9' at byte 1"):
        read_documents([path])
