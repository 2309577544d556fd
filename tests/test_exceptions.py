import inspect
import pickle
import traceback

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


def test_a_cause_that_holds_a_secret_is_replaced_and_another_stays() -> None:
    def fail(text: str) -> None:
        try:
            raise OSError(text)
        except OSError as error:
            raise exceptions.InputError("it cannot be read") from error

    with pytest.raises(exceptions.InputError) as raised, exceptions.causes_without_secrets():
        fail(f"https://u:{'hid' + 'den'}@h/x")
    assert str(raised.value.__cause__) == "OSError: https://***@h/x"
    assert "hidden" not in "".join(traceback.format_exception(raised.value))
    with pytest.raises(exceptions.InputError) as raised, exceptions.causes_without_secrets():
        fail("no such file")
    assert type(raised.value.__cause__) is OSError
