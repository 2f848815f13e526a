import pytest

from mtron_eval import Metric, TaskResult, evaluate


class CountingTask:
    """A task of a user's own."""

    name = "counting"
    version = 3
    description = "Counts documents."

    def __init__(self, config, data):
        self.count = sum(len(file.documents) for file in data)

    def run(self, scorer, progress=None):
        metric = Metric(float(self.count), None, "documents", higher_is_better=True)
        return TaskResult(self.name, self.version, {}, {}, {"count": metric})


def test_a_task_class_of_ones_own_runs_beside_the_built_in_ones(uniform_scorer, write_jsonl):
    data = write_jsonl({"text": "a"}, {"text": "b"})
    results = evaluate(uniform_scorer, ["perplexity", CountingTask], [data])
    assert list(results.tasks) == ["perplexity", "counting"]
    assert results.tasks["counting"].metrics["count"].value == 2


def test_defaults_are_the_models_length_and_half_of_it(uniform_scorer, write_jsonl):
    results = evaluate(uniform_scorer, ["perplexity"], [write_jsonl({"text": "a"})])
    assert results.provenance["config"]["context"] == 16
    assert results.provenance["config"]["stride"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["perplexty"]}, "unknown task, got 'perplexty'; did you mean perplexity"),
        ({"tasks": ["zzz"]}, "unknown task, got 'zzz'; tasks are: perplexity"),
        ({"tasks": []}, "tasks"),
        ({"tasks": ["perplexity", "perplexity"]}, "named twice"),
        ({"data": []}, "data"),
        ({"context": 17}, "context: the model was made for at most 16 tokens, got 17"),
        ({"context": 0}, "context"),
        ({"stride": 17}, "stride: must not exceed the context of 16 tokens.*got 17"),
        ({"context": 8, "stride": 9}, "stride: must not exceed the context of 8 tokens"),
        ({"stride": 0}, "stride"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_scored(
    uniform_scorer, write_jsonl, arguments, message
):
    request = {"tasks": ["perplexity"], "data": [write_jsonl({"text": "a"})]} | arguments
    with pytest.raises(ValueError, match=message):
        evaluate(uniform_scorer, **request)
    assert not uniform_scorer.seen


def test_progress_ends_at_the_total(uniform_scorer, write_jsonl):
    calls = []
    data = write_jsonl({"text": "a" * 40}, {"text": "b"})
    evaluate(
        uniform_scorer,
        ["perplexity"],
        [data],
        batch_size=1,
        progress=lambda *now: calls.append(now),
    )
    assert calls[-1][0] == calls[-1][1]
    assert calls == sorted(calls)
