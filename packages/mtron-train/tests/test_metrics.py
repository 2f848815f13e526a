import json

from mtron_train.metrics import JsonLinesSink, read_metrics
from mtron_train.plot import plot_curves


def write(directory, steps, resumed_step=0):
    sink = JsonLinesSink(directory, resumed_step)
    for step in steps:
        sink.write(step, {"loss/train": 5.0 / step, "grad_norm": 1.0, "tokens_per_second": 10.0})
    sink.close()


def test_a_resumed_run_has_every_step_once(tmp_path):
    write(tmp_path, range(1, 31))
    write(tmp_path, range(21, 41), resumed_step=20)
    assert [record["step"] for record in read_metrics(tmp_path)] == list(range(1, 41))


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "loss')
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]
    write(tmp_path, [3], resumed_step=2)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_the_picture_is_a_png_also_of_an_empty_run(tmp_path):
    assert plot_curves(tmp_path).read_bytes().startswith(b"\x89PNG")
    write(tmp_path, range(1, 50))
    assert plot_curves(tmp_path).read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".curves*"))
