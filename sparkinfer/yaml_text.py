"""Reads YAML strictly, and says what is wrong with it without repeating it.

A broken line may hold a password, so a message has the place and not the content.
"""

from __future__ import annotations

import re
from typing import Any

import yaml


class YamlTextError(ValueError):
    """A text is not YAML, or not YAML that is accepted; the message says what is wrong and where.

    It is always caught and reported with the name of the file.
    """


def parse_yaml(text: str) -> Any:
    """Returns the value of a YAML text, of plain types.

    Raises:
        YamlTextError: it is not YAML, repeats a key, or holds a value that there cannot be.
    """
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        raise YamlTextError(_without_content(error)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise YamlTextError(f"line {line}, column {column}: a control character") from None
    except RecursionError:
        raise YamlTextError("it is nested too deeply") from None


class _StrictLoader(yaml.SafeLoader):
    """Refuses keys that come twice, and says where a value is that there cannot be."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            before = first.setdefault((key.tag, key.value), key)
            if before is not key:
                line = before.start_mark.line + 1
                what = f"the key was given before, in line {line}"
                raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError):
            kind = node.tag.rsplit(":", 1)[-1]
            what = f"what is written as a value of the type {kind} is none"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from None


def _without_content(error: yaml.MarkedYAMLError) -> str:
    """Returns place and problem; of what PyYAML quotes, only its own words such as '<scalar>'."""
    problem = re.sub(r" ?(['\"])(?!<[a-z ]+>').*\1", "", error.problem or "", flags=re.DOTALL)
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return place + " ".join(problem.split())
