import asyncio
import threading
import time

import pytest

from mtron_infer import (
    AsyncEngine,
    EngineStoppedError,
    QueueFullError,
    Request,
    SamplingParams,
)
from mtron_infer.outputs import join_outputs

GREEDY = SamplingParams(max_tokens=12, temperature=0.0)
LONG = SamplingParams(max_tokens=60, ignore_eos=True)


async def choices_of(stream):
    return join_outputs([output async for output in stream])


async def until(condition):
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen in time")


def test_streams_side_by_side(make_engine, model, reference):
    engine = make_engine(max_batch_size=3)
    prompts = [[5 + i] * (i + 1) for i in range(8)]

    async def run():
        return await asyncio.gather(
            *(choices_of(engine.stream(Request(p, GREEDY))) for p in prompts)
        )

    found = asyncio.run(run())
    expected = [reference.greedy_loop(model, prompt, 12) for prompt in prompts]
    assert [choice.token_ids for (choice,) in found] == expected


@pytest.fixture
def slow_engine(make_engine, monkeypatch):
    """An engine that needs 6 seconds for a long request."""
    engine = make_engine()
    forward = engine._runner.forward
    monkeypatch.setattr(
        engine._runner, "forward", lambda *batch: (time.sleep(0.1), forward(*batch))[1]
    )
    return engine


def test_leaving_early_cancels(slow_engine):
    engine = slow_engine

    async def run():
        stream = engine.stream(Request([5], LONG))
        async for _ in stream:
            break
        await stream.aclose()
        await until(lambda: engine.num_running == 0)

    asyncio.run(run())


def test_a_cancelled_task_cancels_its_request(slow_engine):
    engine = slow_engine

    async def run():
        task = asyncio.create_task(choices_of(engine.stream(Request([5], LONG))))
        await until(lambda: engine.num_running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: engine.num_running == 0)

    asyncio.run(run())


def test_refusals_reach_the_caller(make_engine):
    front = AsyncEngine(make_engine(max_queue=2))

    async def run():
        with pytest.raises(ValueError, match="prompt: is empty"):
            await front.submit([Request([1]), Request([])])
        with pytest.raises(QueueFullError):
            await front.submit([Request([1])] * 3)
        stream = await front.submit([Request([1], GREEDY)] * 2)
        places = [place async for place, output in stream if output.finish_reason]
        assert sorted(places) == [0, 1]
        assert stream.num_prompt_tokens == 2

    asyncio.run(run())
    front.close()


def test_other_threads_are_kept_out_while_it_runs(make_engine):
    engine = make_engine()
    front = AsyncEngine(engine)
    with pytest.raises(RuntimeError, match="belongs to its worker thread"):
        engine.generate([[1]], GREEDY)
    front.close()
    assert engine.generate([[1]], GREEDY)[0].finish_reason == "length"


def test_closing_ends_what_runs_and_what_comes_later(make_engine):
    front = AsyncEngine(make_engine())

    async def run():
        stream = await front.submit([Request([5], LONG)])
        await anext(stream)
        closing = asyncio.get_running_loop().run_in_executor(None, front.close)
        with pytest.raises(EngineStoppedError):
            async for _ in stream:
                pass
        await closing
        with pytest.raises(EngineStoppedError):
            await front.submit([Request([5])])

    asyncio.run(run())


def test_a_failing_step_ends_its_requests_and_nothing_else(make_engine, monkeypatch, caplog):
    engine = make_engine()
    front = AsyncEngine(engine)

    async def run():
        with monkeypatch.context() as patch:
            patch.setattr(engine._runner, "forward", lambda *_: 1 / 0)
            stream = await front.submit([Request([5], GREEDY)])
            with pytest.raises(EngineStoppedError, match="the engine failed"):
                await anext(stream)
        assert "ZeroDivisionError" in caplog.text
        stream = await front.submit([Request([5], GREEDY)])
        assert (await choices_of_places(stream))[0].finish_reason == "length"

    async def choices_of_places(stream):
        return join_outputs([output async for _, output in stream])

    asyncio.run(run())
    front.close()


def test_an_event_loop_that_ended_holds_no_slot(make_engine):
    engine = make_engine()
    front = AsyncEngine(engine)

    async def begin():
        return await front.submit([Request([5], LONG)] * 3)

    asyncio.run(begin())
    end = time.monotonic() + 10
    while engine.num_running or engine.num_waiting:
        assert time.monotonic() < end
        time.sleep(0.01)
    front.close()


def test_a_stream_that_nobody_reads_stalls_nobody(make_engine):
    front = AsyncEngine(make_engine(max_batch_size=2))

    async def run():
        unread = await front.submit([Request([5], LONG)])
        for _ in range(3):
            stream = await front.submit([Request([6], GREEDY)])
            assert [output async for _, output in stream][-1].finish_reason
        assert [output async for _, output in unread][-1].finish_reason

    asyncio.run(run())
    front.close()


def test_no_thread_is_left(make_engine):
    before = threading.active_count()
    front = AsyncEngine(make_engine())
    front.close()
    assert threading.active_count() == before
