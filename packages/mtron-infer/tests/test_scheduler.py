import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mtron_infer.scheduler import (
    Limits,
    QueueFullError,
    QueueState,
    Waiting,
    enqueue,
    extend,
    plan,
    remove,
    room,
)

limits_strategy = st.builds(
    lambda size, more, queue: Limits(size, size + more, queue),
    st.integers(1, 5),
    st.integers(0, 12),
    st.integers(1, 6),
)


class Queue(RuleBasedStateMachine):
    """Any order of arrivals, steps, ends and cancellations."""

    @initialize(limits=limits_strategy)
    def start(self, limits):
        self.limits = limits
        self.state = QueueState()
        self.computed = {}  # tokens of each sequence that were planned
        self.known = {}  # tokens that each sequence has
        self.arrived = []
        self.started = []
        self.next_id = 0

    @rule(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4))
    def arrive(self, lengths):
        new = [Waiting(self.next_id + i, length) for i, length in enumerate(lengths)]
        if len(new) > room(self.state, self.limits):
            with pytest.raises(QueueFullError):
                enqueue(self.state, self.limits, new)
            return
        self.state = enqueue(self.state, self.limits, new)
        self.next_id += len(new)
        for entry in new:
            self.known[entry.id], self.computed[entry.id] = entry.num_tokens, 0
            self.arrived.append(entry.id)

    @precondition(lambda self: self.state)
    @rule(data=st.data())
    def step(self, data):
        before = {entry.id: entry for entry in self.state.running}
        result = plan(self.state, self.limits)
        assert result == plan(self.state, self.limits)
        assert 0 < sum(chunk.count for chunk in result.chunks) <= self.limits.max_batch_tokens
        assert {chunk.id for chunk in result.chunks} >= set(before), "every running one advances"
        for chunk in result.chunks:
            assert chunk.count > 0
            assert chunk.start == self.computed[chunk.id]
            if chunk.id in before:
                assert chunk.slot == before[chunk.id].slot
            else:
                self.started.append(chunk.id)
            self.computed[chunk.id] += chunk.count
            assert chunk.is_last == (self.computed[chunk.id] == self.known[chunk.id])
        waiting = bool(result.after.waiting)
        full = len(result.after.running) == self.limits.max_batch_size
        spent = sum(chunk.count for chunk in result.chunks) == self.limits.max_batch_tokens
        assert not waiting or full or spent, "nobody waits without a reason"
        ready = [chunk.id for chunk in result.chunks if chunk.is_last]
        ended = {id_ for id_ in ready if data.draw(st.integers(0, 3)) == 0}
        self.state = remove(result.after, ended)
        self._forget(ended)
        self.state = extend(self.state, set(ready))
        for id_ in set(ready) - ended:
            self.known[id_] += 1

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def cancel(self, data):
        chosen = {data.draw(st.sampled_from(sorted(self.known)))}
        self.state = remove(self.state, chosen)
        self._forget(chosen)

    def _forget(self, ids):
        for id_ in ids:
            del self.known[id_], self.computed[id_]
            if id_ not in self.started:
                self.arrived.remove(id_)

    @invariant()
    def slots_are_held_by_one_and_within_limits(self):
        if not hasattr(self, "state"):
            return
        slots = [entry.slot for entry in self.state.running]
        assert len(set(slots)) == len(slots) <= self.limits.max_batch_size
        assert all(0 <= slot < self.limits.max_batch_size for slot in slots)
        assert len(self.state.waiting) <= self.limits.max_queue

    @invariant()
    def the_queue_holds_exactly_what_lives(self):
        if not hasattr(self, "state"):
            return
        held = {e.id: e for e in self.state.running} | {e.id: e for e in self.state.waiting}
        assert held.keys() == self.known.keys()
        assert {i: e.num_tokens for i, e in held.items()} == self.known
        assert {e.id: e.num_computed for e in self.state.running}.items() <= self.computed.items()

    @invariant()
    def first_come_first_served(self):
        if hasattr(self, "state"):
            assert self.started == self.arrived[: len(self.started)]


Queue.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestQueue = Queue.TestCase


@given(limits_strategy, st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), max_size=6))
def test_all_end_within_the_steps_that_one_by_one_would_take(limits, jobs):
    jobs = jobs[: limits.max_queue]
    state = enqueue(QueueState(), limits, [Waiting(i, n) for i, (n, _) in enumerate(jobs)])
    left = {i: new for i, (_, new) in enumerate(jobs)}
    bound = sum(-(-n // limits.max_batch_tokens) + new for n, new in jobs)
    steps = 0
    while state:
        result = plan(state, limits)
        ready = {chunk.id for chunk in result.chunks if chunk.is_last}
        for id_ in ready:
            left[id_] -= 1
        state = extend(remove(result.after, {i for i in ready if not left[i]}), ready)
        steps += 1
        assert steps <= bound


def test_a_long_prompt_goes_in_pieces_beside_a_running_one():
    limits = Limits(max_batch_size=2, max_batch_tokens=10, max_queue=4)
    state = enqueue(QueueState(), limits, [Waiting(0, 3)])
    state = extend(plan(state, limits).after, {0})
    state = enqueue(state, limits, [Waiting(1, 20), Waiting(2, 1)])
    counts = []
    for _ in range(3):
        result = plan(state, limits)
        counts.append([(chunk.id, chunk.start, chunk.count) for chunk in result.chunks])
        state = extend(result.after, {chunk.id for chunk in result.chunks if chunk.is_last})
    assert counts == [[(0, 3, 1), (1, 0, 9)], [(0, 4, 1), (1, 9, 9)], [(0, 5, 1), (1, 18, 2)]]
