from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkinfer.exceptions import ConfigError
from sparkinfer.validation import NOT_EMPTY, PATH, Options, above, at_least, read_by


def _even(value: Any) -> Any:
    if value % 2:
        raise ValueError("an even number")
    return value // 2


@dataclass(frozen=True, init=False)
class Inner(Options):
    rows: int = field(default=4, metadata=at_least(1))
    share: float | None = field(default=None, metadata=above(0))


@dataclass(frozen=True, init=False)
class Outer(Options):
    name: str = field(metadata=PATH | NOT_EMPTY)
    count: int | None = None
    ratio: float = 0.5
    flag: bool = False
    mode: Literal["fast", "slow"] = "fast"
    one: Literal["only"] = "only"
    columns: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    halved: int = field(default=0, metadata=read_by(_even))
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("option", "value", "kept"),
    [
        ("name", Path("a/b"), "a/b"),
        ("count", None, None),
        ("count", 0, 0),
        ("ratio", 2, 2.0),
        ("flag", True, True),
        ("mode", "slow", "slow"),
        ("columns", ["a", "b"], ("a", "b")),
        ("columns", ("a",), ("a",)),
        ("settings", {"a.b": "1"}, {"a.b": "1"}),
        ("halved", 6, 3),
        ("inner", {"rows": 2}, Inner(rows=2)),
        ("inner", Inner(share=1), Inner(share=1.0)),
    ],
)
def test_a_fitting_value_is_kept(option: str, value: object, kept: object) -> None:
    found = getattr(Outer(**{"name": "n", option: value}), option)
    assert (found, type(found)) == (kept, type(kept))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("name", "", "name='': expected a string that is not empty"),
        ("name", 3, "name=3: expected a string that is not empty"),
        ("name", None, "name=None: expected a string that is not empty"),
        ("count", "2", "count='2': expected an integer"),
        ("count", True, "count=True: expected an integer"),
        ("count", 2.0, "count=2.0: expected an integer"),
        ("ratio", "0.5", "ratio='0.5': expected a number"),
        ("ratio", True, "ratio=True: expected a number"),
        ("flag", 1, "flag=1: expected true or false"),
        ("mode", "medium", "mode='medium': expected 'fast' or 'slow'"),
        ("mode", ["fast"], "mode=['fast']: expected 'fast' or 'slow'"),
        ("one", "two", "one='two': expected 'only'"),
        ("columns", "a", "columns='a': expected a list of strings"),
        ("columns", ["a", 1], "columns=['a', 1]: expected a list of strings"),
        ("sizes", ["a"], "sizes=['a']: expected a list of integers"),
        ("settings", {"a": 1}, "settings={'a': 1}: expected a mapping of names to strings"),
        ("settings", {1: "a"}, "settings={1: 'a'}: expected a mapping of names to strings"),
        ("halved", 3, "halved=3: expected an even number"),
        ("inner", 3, "inner=3: expected a group of options"),
        ("inner", {"rows": 0}, "inner.rows=0: expected an integer of at least 1"),
        ("inner", {"share": 0}, "inner.share=0: expected a number greater than 0"),
        ("inner", {"share": float("nan")}, "inner.share=nan: expected a finite number"),
        ("inner", {"row": 1}, "unknown option 'inner.row'; did you mean 'inner.rows'?"),
        ("inner", {1: 1}, "unknown option 'inner.1'"),
        ("rows", 1, "unknown option 'rows'; did you mean 'inner.rows'?"),
        ("colums", (), "unknown option 'colums'; did you mean 'columns'?"),
        ("zzz", 1, "unknown option 'zzz'; known options: name, count, ratio"),
    ],
)
def test_a_problem_is_told_in_plain_words(option: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Outer(**{"name": "n", option: value})
    assert raised.value.message.startswith(message)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        Outer(flags=1, count="x", inner={"rows": 0, "rws": 1})
    assert raised.value.message == (
        "unknown option 'flags'; did you mean 'flag'?; "
        "option 'name' is required; give --name or name=...; "
        "count='x': expected an integer; "
        "unknown option 'inner.rws'; did you mean 'inner.rows'?; "
        "inner.rows=0: expected an integer of at least 1"
    )


def test_a_group_by_itself_names_its_options_without_the_groups_name() -> None:
    with pytest.raises(ConfigError, match="unknown option 'row'; did you mean 'rows'"):
        Inner(row=3)


@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), lambda x: x])
def test_a_group_is_frozen_compared_by_value_and_pickled(copied: Callable[[Any], Any]) -> None:
    outer = copied(Outer(name="n", inner={"rows": 2}))
    assert outer == Outer(name="n", inner=Inner(rows=2), count=None)
    assert outer != Outer(name="n")
    assert outer.given == {"name", "inner"}
    assert Outer(**outer.as_dict()) == outer
    with pytest.raises(FrozenInstanceError):
        outer.name = "m"


def test_defaults_are_not_shared() -> None:
    assert Outer(name="a").settings is not Outer(name="b").settings


def test_a_subclass_may_make_a_required_option_optional() -> None:
    @dataclass(frozen=True, init=False)
    class Lenient(Outer):
        name: str = field(default_factory=lambda: "made", metadata=NOT_EMPTY)

    assert (Lenient().name, Lenient().given) == ("made", frozenset())
    with pytest.raises(ConfigError, match="name='': expected"):
        Lenient(name="")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = ["name", "count", "ratio", "flag", "mode", "columns", "settings", "inner", "other"]


def outcome(values: dict[str, Any]) -> Outer | str:
    try:
        return Outer(**values)
    except ConfigError as error:
        return error.message


@given(st.dictionaries(st.sampled_from(NAMES), JSON))
def test_whatever_is_given_is_kept_or_refused_with_its_name(values: dict[str, Any]) -> None:
    found = outcome(values)
    if isinstance(found, str):
        assert any(name in found for name in [*values, "name"])
    else:
        assert found.given == values.keys()
        assert isinstance(found.name, str)
        assert type(found.ratio) is float
        assert isinstance(found.inner, Inner)
