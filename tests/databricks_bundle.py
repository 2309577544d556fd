"""The bundle of `conf/databricks` as Databricks' command line would send it, without a workspace.

Of what that does with a bundle, this reads the included files and fills in variables; names of
resources and folders, which only a workspace knows, stay as they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parent.parent
BUNDLE = CHECKOUT / "conf" / "databricks"
_VARIABLE = re.compile(r"\$\{var\.([a-z_]+)\}")


def read_bundle() -> dict[str, Any]:
    """Returns `databricks.yml` with the resources of the files that it includes."""
    bundle: dict[str, Any] = yaml.safe_load((BUNDLE / "databricks.yml").read_text("utf-8"))
    resources: dict[str, Any] = {}
    for pattern in bundle["include"]:
        for file in sorted(BUNDLE.glob(pattern)):
            for kind, named in yaml.safe_load(file.read_text("utf-8"))["resources"].items():
                resources.setdefault(kind, {}).update(named)
    return {**bundle, "resources": resources}


def deployed(target: str, **given: str) -> dict[str, Any]:
    """Returns the resources of a target, each variable with its value.

    Args:
        target: one of the bundle's.
        **given: as by `--var`.

    Raises:
        KeyError: there is no such target, or a variable has no value.
    """
    bundle = read_bundle()
    defaults = {
        name: one["default"] for name, one in bundle["variables"].items() if "default" in one
    }
    values = {**defaults, **bundle["targets"][target]["variables"], **given}
    resources: dict[str, Any] = _filled(bundle["resources"], values)
    return resources


def _filled(value: Any, values: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(one, values) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, values) for one in value]
    if not isinstance(value, str):
        return value
    if whole := _VARIABLE.fullmatch(value):
        return _filled(values[whole[1]], values)
    filled = _VARIABLE.sub(lambda found: str(values[found[1]]), value)
    return filled if filled == value else _filled(filled, values)
