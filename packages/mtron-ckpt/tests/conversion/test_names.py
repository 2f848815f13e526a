import pytest

from mtron_ckpt.conversion.families import FAMILIES
from mtron_ckpt.conversion.names import NameTable, Row, check_tensors

SIZES = {"wide": 6, "narrow": 2}


def test_a_table_expands_over_layers_and_flags():
    table = NameTable(
        rows=(
            Row("a.weight", "x.a", ("wide",)),
            Row("layers.{layer}.b", "h.{layer}.b", ("narrow", "wide")),
            Row("layers.{layer}.n", "h.{layer}.norm", ("wide",)),
            Row("c", "x.c", ("wide",), unless="tied"),
        )
    )
    untied = table.expand(SIZES, {"tied": False}, 2)
    assert [(p.ours, p.theirs, p.shape) for p in untied] == [
        ("a.weight", "x.a", (6,)),
        ("layers.0.b", "h.0.b", (2, 6)),
        ("layers.0.n", "h.0.norm", (6,)),
        ("layers.1.b", "h.1.b", (2, 6)),
        ("layers.1.n", "h.1.norm", (6,)),
        ("c", "x.c", (6,)),
    ]
    assert [p.ours for p in table.expand(SIZES, {"tied": True}, 0)] == ["a.weight"]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_every_familys_table_is_invertible(family, tied):
    flags = {row.unless: tied for row in family.table.rows if row.unless}
    sizes = dict.fromkeys((size for row in family.table.rows for size in row.shape), 4)
    pairs = family.table.expand(sizes, flags, 12)
    assert len({p.ours for p in pairs}) == len({p.theirs for p in pairs}) == len(pairs)
    assert not any(family.table.is_derived(p.theirs) for p in pairs)


def test_derived_names_match_any_layer_and_nothing_else():
    table = NameTable(rows=(), derived=("h.{layer}.inv",))
    assert table.is_derived("h.17.inv")
    assert not table.is_derived("h.17.inv.weight")
    assert not table.is_derived("h.x.inv")
    assert not table.is_derived("hx17.inv")


def test_missing_leftover_and_misshapen_tensors_are_named():
    expected = {"a": (2, 3), "b": (4,), "c": (1,)}
    with pytest.raises(ValueError, match="the tensors do not match") as caught:
        check_tensors("some/where", expected, {"a": (3, 2), "c": (1,), "extra": (9,)})
    message = str(caught.value)
    assert message.startswith("some/where: ")
    assert "1 missing: b" in message
    assert "1 left over: extra" in message
    assert "a is [3, 2] and should be [2, 3]" in message


def test_long_lists_are_cut():
    with pytest.raises(ValueError, match=r"20 missing: t0, .* and 12 more"):
        check_tensors("x", {f"t{i}": (1,) for i in range(20)}, {})
