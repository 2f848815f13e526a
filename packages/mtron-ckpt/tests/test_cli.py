import sys

import pytest

from mtron_ckpt.cli import main


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return call


@pytest.fixture
def path(tmp_path, save, values):
    save(tmp_path / "root", values(0), 10)
    return save(tmp_path / "root", values(1), 20)


def test_inspect(run, path, tmp_path):
    code, out, err = run("inspect", tmp_path / "root")
    assert (code, err) == (0, "")
    for part in (
        "step-00000020",
        "step 20, 6 arrays",
        "committed steps here: 10, 20",
        "hidden_size=41",
        "param: 3 arrays, 15,420 elements",
        "embed.weight  float32 [300, 41]  48.0 KiB",
        "norm.weight  bfloat16 [48]  96 B",
        "norm.weight  float64 []  8 B",
        "tokenizer.json: 18 B",
        "train: step=20",
    ):
        assert part in out
    assert "committed steps" not in run("inspect", path)[1]


def test_verify(run, path, tmp_path):
    code, out, err = run("verify", tmp_path / "root")
    assert (code, err) == (0, "")
    assert "2 steps" in out
    assert "every byte is as it was saved" in out
    assert "1 step," in run("verify", path)[1]


def test_verify_names_damage_and_fails(run, path, tmp_path):
    file = path / "data" / "writer-0000-000.zip"
    content = bytearray(file.read_bytes())
    content[9000] ^= 1
    file.write_bytes(content)
    code, out, err = run("verify", tmp_path / "root")
    assert code == 1
    assert "array param/embed.weight, rows 0-300: fails its checksum" in out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_bad_input_is_one_paragraph(run, tmp_path, command):
    for where, message in {
        tmp_path / "nothing": "no such checkpoint",
        tmp_path: "not a checkpoint",
    }.items():
        code, out, err = run(command, where)
        assert (code, out) == (1, "")
        assert err.startswith(f"error: {where}: {message}")
        assert err.count("\n") == 1


def test_debug_shows_the_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["verify", str(tmp_path / "nothing"), "--debug"])


def test_usage(run, monkeypatch):
    assert run("nonsense")[0] == 2
    for arguments in (["--help"], ["inspect", "--help"], ["verify", "--help"]):
        code, out, _ = run(*arguments)
        assert code == 0
        assert "Example: mtron-ckpt" in out
    monkeypatch.setattr(sys, "argv", ["mtron-ckpt", "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
