import runpy
from pathlib import Path

import pytest

from mtron_parallel.config import ParallelConfig
from mtron_parallel.memory import MemoryPlan, plan_memory

LAYOUTS = runpy.run_path(str(Path(__file__).with_name("layouts.py")))
Shard, Replicate = LAYOUTS["Shard"], LAYOUTS["Replicate"]


class Model:
    """Eight query heads and two key heads of width 8 in 32 hidden elements, 50 tokens."""

    def parameter_shapes(self):
        return {"embed": (50, 32), "q": (64, 32), "k": (16, 32), "norm": (64,)}

    def layout(self):
        return {
            "embed": Shard(pad=True),
            "q": Shard(unit=8),
            "k": Shard(unit=8, replicate_if_fewer=True),
            "norm": Replicate(sequence=True),
        }


def plan(**fields):
    sizes = {
        name: fields.pop(name)
        for name in ("weight_bytes", "gradient_bytes", "state_bytes", "gloo")
        if name in fields
    }
    return plan_memory(Model(), ParallelConfig(**fields), **sizes)


def test_one_process_holds_everything():
    # 50 * 32 + 64 * 32 + 16 * 32 + 64 elements; 4 + 4 + 8 bytes of each.
    assert plan(dp=1) == MemoryPlan(4224, 16896, 16896, 33792, 0)
    assert plan(dp=1).total_bytes == 16 * 4224


def test_tensor_parallel_ranks_hold_their_part_with_padding_and_copies():
    # Of 4 ranks each: 16 rows of the vocabulary (50 / 32 rounded up, times 8), 2 of 8 query
    # heads, one of 2 key heads, the norm: 16 * 32 + 16 * 32 + 8 * 32 + 64 elements.
    assert plan(tp=4, dp=1) == MemoryPlan(1344, 5376, 5376, 10752, 0)


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_one_data_parallel_rank_has_nothing_to_share(zero):
    assert plan(tp=4, dp=1, zero=zero) == plan(tp=4, dp=1)


def test_plain_data_parallel_ranks_hold_everything():
    assert plan(dp=2) == plan(dp=1)


def test_zero_1_shares_optimizer_state_and_the_sum_of_gradients():
    # 1344 weights, 1344 gradients and 672 of their sum, state of 672.
    assert plan(tp=4, dp=2, zero=1) == MemoryPlan(1344, 5376, 4 * (1344 + 672), 8 * 672, 0)


def test_zero_2_shares_gradients_too():
    # One bucket holds k, whose gradients two tensor-parallel ranks add up, one the rest: while
    # these are summed there are 1344 + 672 elements more.
    assert plan(tp=4, dp=2, zero=2) == MemoryPlan(1344, 5376, 4 * 672, 8 * 672, 4 * (1344 + 672))


def test_with_smaller_buckets_two_exist_at_a_time():
    # Of 2600 elements, from the last parameter on: norm and k (576), q (2048), vocabulary (1600).
    found = plan(dp=2, zero=2, bucket_bytes=10400)
    assert found.communication_bytes == 4 * (2048 + 1024 + 1600 + 800)
    assert found.gradients_bytes == 4 * 4224 // 2


def test_buckets_hold_what_is_summed_over_the_same_ranks():
    # With sequence parallelism 3: norm (64), k (256), q with the vocabulary (1024).
    found = plan(tp=4, dp=2, zero=2, sequence_parallel=True)
    assert found.communication_bytes == 4 * (1024 + 512 + 256 + 128)
    # Without: k (256) and the rest (1088).
    found = plan(tp=4, dp=2, zero=2)
    assert found.communication_bytes == 4 * (1088 + 544 + 256 + 128)


def test_a_bucket_has_32_rows_for_each_rank_however_small_its_limit():
    # 2 * 32 rows of 32 elements hold more than the rest (1088), which is one bucket; k is another.
    found = plan(tp=4, dp=2, zero=2, bucket_bytes=1024)
    assert found.communication_bytes == 4 * (1088 + 544 + 256 + 128)
    # Whole parameters are larger than that: each is alone.
    assert plan(dp=2, zero=2, bucket_bytes=1).communication_bytes == 4 * (2048 + 1024 + 1600 + 800)


def test_element_sizes():
    # bfloat16 weights, float32 gradients; a master weight and two moments in float32.
    sizes = {"weight_bytes": 2, "gradient_bytes": 4, "state_bytes": 12}
    assert plan(dp=1, **sizes) == MemoryPlan(4224, 2 * 4224, 4 * 4224, 12 * 4224, 0)
    halved = plan(tp=4, dp=2, zero=2, bucket_bytes=2048, weight_bytes=2, gradient_bytes=2)
    # Two buckets: k (256) and the rest (1088).
    transient = 1088 + 544 + 256 + 128
    assert halved == MemoryPlan(1344, 2 * 1344, 2 * 672, 8 * 672, 2 * transient)


def test_padding_of_buckets_counts():
    class Odd(Model):
        def parameter_shapes(self):
            return {"norm": (70,)}

    # Two ranks have 35 elements each, and room for 64, the next multiple of 32.
    found = plan_memory(Odd(), ParallelConfig(dp=2, zero=1))
    assert found == MemoryPlan(70, 4 * 128, 4 * (128 + 64), 8 * 64, 0)
    assert plan_memory(Odd(), ParallelConfig(dp=2)) == MemoryPlan(70, 4 * 70, 4 * 128, 8 * 70, 0)


def test_a_layout_that_is_not_resolved_or_not_legal_is_refused():
    with pytest.raises(ValueError, match=r"parallel.dp: must be filled in, got -1"):
        plan(tp=2)
    with pytest.raises(ValueError, match="tp: 3 does not divide"):
        plan(tp=3, dp=1)


def test_over_gloo_the_shares_of_other_ranks_take_memory():
    # Of 2600 elements as above; with 4 ranks two shares wait beside the one that is added to.
    plain = plan(dp=4, zero=1, bucket_bytes=10400)
    over_gloo = plan(dp=4, zero=1, bucket_bytes=10400, gloo=True)
    assert over_gloo.communication_bytes == plain.optimizer_bytes // 8 * 2 * 4
    assert plan(dp=2, zero=1, gloo=True) == plan(dp=2, zero=1)
    plain, over_gloo = (plan(dp=4, zero=2, bucket_bytes=1, gloo=gloo) for gloo in (False, True))
    # Both buckets, which hold 4352 elements with their padding.
    assert over_gloo.communication_bytes - plain.communication_bytes == 4 * 2 * 4352 // 4


def test_over_gloo_tensor_parallel_ranks_share_memory():
    over_gloo = plan(tp=2, dp=1, gloo=True).communication_bytes
    assert over_gloo - plan(tp=2, dp=1).communication_bytes == 2 * 2 * 512 * 1024
