import inspect
import pickle

import pytest

from sparkinfer import exceptions

ERRORS = [
    member
    for _, member in inspect.getmembers(exceptions, inspect.isclass)
    if issubclass(member, Exception)
]


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_survives_pickling(error: type[exceptions.SparkInferError]) -> None:
    copied = pickle.loads(pickle.dumps(error("max_length=0: expected at least 2")))
    assert type(copied) is error
    assert copied.message == str(copied) == "max_length=0: expected at least 2"


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_has_the_one_root(error: type[Exception]) -> None:
    assert issubclass(error, exceptions.SparkInferError)
    assert error.__name__ in (exceptions.__doc__ or "")
