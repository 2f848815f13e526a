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
    untied = table.expand(SIZES, lambda flag: False, lambda layers: {0: 0, 1: 1})
    assert list(untied.ours.items()) == [
        ("a.weight", (6,)),
        ("layers.0.b", (2, 6)),
        ("layers.0.n", (6,)),
        ("layers.1.b", (2, 6)),
        ("layers.1.n", (6,)),
        ("c", (6,)),
    ]
    assert list(untied.theirs) == ["x.a", "h.0.b", "h.0.norm", "h.1.b", "h.1.norm", "x.c"]
    tied = table.expand(SIZES, lambda flag: flag == "tied", lambda layers: {})
    assert list(tied.ours) == ["a.weight"]


ARCHITECTURES = {
    one.name: (family, one) for family in FAMILIES.values() for one in family.architectures
}


def test_more_tensors_than_there_can_be_are_refused():
    table = NameTable((Row("w", "x.{expert}", ("wide",)),))
    assert len(table.expand(SIZES, bool, lambda layers: {}, most=6).theirs) == 6
    with pytest.raises(ValueError, match="asks for more than 5 tensors"):
        table.expand(SIZES, bool, lambda layers: {}, most=5)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("flag", [False, True])
def test_every_table_is_invertible(name, flag):
    family, architecture = ARCHITECTURES[name]
    table = architecture.table
    sizes = dict.fromkeys((size for row in table.rows for size in row.shape), 4)
    sets = ["all", *family.layer_sets]
    assert {row.layers for row in table.rows} <= set(sets)
    # Their indices differ from set to set: layers of another kind may follow the ordinary ones.
    layers = {name: {i: i + 100 * place for i in (2, 11)} for place, name in enumerate(sets)}
    tensors = table.expand(sizes, lambda flag_name: flag, layers.__getitem__)
    for theirs in tensors.theirs:
        assert not table.is_derived(theirs)
        assert table.modern_name(theirs) == theirs
    assert {ours for theirs in tensors.theirs for ours in tensors.ours_of(theirs)} == set(
        tensors.ours
    )


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
