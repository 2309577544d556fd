import inspect
import pickle
import pkgutil
import re
import traceback
from importlib import import_module
from typing import Any

import pytest

import sparkinfer
from sparkinfer import exceptions

INTERNAL = {
    "sparkinfer.engines.horovod.control.RunAbortedError",
    "sparkinfer.engines.local_processes.ProcessDiedError",
    "sparkinfer.files.json_rows._TwiceError",
    "sparkinfer.files.types.NotCarriedError",
    "sparkinfer.functions.formats.UnfitBatchError",
    "sparkinfer.jobs.sealed.DamagedError",
    "sparkinfer.jobs.sealed.OtherVersionError",
    "sparkinfer.jobs.sealed.UnfinishedError",
    "sparkinfer.sinks.footers.BrokenFileError",
    "sparkinfer.sinks.vectors.base.StoreAwayError",
    "sparkinfer.models.examination._FailsError",
    "sparkinfer.models.examination._TooLongError",
    "sparkinfer.models.results.MisfitError",
    "sparkinfer.signals.Stopped",
    "sparkinfer.tuning.replicas.ReplicaError",
    "sparkinfer.validation._MisfitError",
    "sparkinfer.yaml_text.YamlTextError",
}
"""Always caught within the package, by the one who asked."""


def errors_of_the_package() -> list[type[Exception]]:
    found = []
    for module in pkgutil.walk_packages(sparkinfer.__path__, "sparkinfer."):
        if module.name == "sparkinfer.__main__":
            continue
        found += [
            member
            for _, member in inspect.getmembers(import_module(module.name), inspect.isclass)
            if issubclass(member, BaseException) and member.__module__ == module.name
        ]
    return found


ERRORS = errors_of_the_package()


def name_of(error: type[Exception]) -> str:
    return f"{error.__module__}.{error.__qualname__}"


@pytest.mark.parametrize("error", ERRORS, ids=name_of)
def test_an_error_survives_pickling(error: type[Exception]) -> None:
    given: Any = (
        ValueError("why") if error.__name__ == "_FailsError" else "max_length=0: expected 2"
    )
    made = error(given)
    copied = pickle.loads(pickle.dumps(made))
    assert type(copied) is error
    assert str(copied) == str(made)
    if isinstance(copied, exceptions.SparkInferError):
        assert copied.message == str(copied) == "max_length=0: expected 2"


@pytest.mark.parametrize("error", ERRORS, ids=name_of)
def test_an_error_has_the_one_root_and_is_drawn_unless_it_stays_inside(
    error: type[Exception],
) -> None:
    if name_of(error) in INTERNAL:
        return
    assert issubclass(error, exceptions.SparkInferError)
    assert error.__name__ in re.findall(r"\w+", exceptions.__doc__ or "")


def test_the_internal_errors_are_those_that_there_are() -> None:
    assert set(map(name_of, ERRORS)) >= INTERNAL


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
