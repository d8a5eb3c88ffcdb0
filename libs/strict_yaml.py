"""YAML without its traps: a key given twice is an error, keys are text, and only `true` and `false` are booleans."""

from pathlib import Path
from typing import Any, cast

import yaml

_MERGE = "tag:yaml.org,2002:merge"
_BOOL = "tag:yaml.org,2002:bool"


class YamlError(Exception):
    """A file cannot be read as YAML; the message names the line and column where there is one, but not the file."""


class _Loader(yaml.SafeLoader):
    """Safe YAML, made stricter. `off`, `no` and the like are words."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own attribute, on the class by design
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL or first in "tTfF"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
        if key_node.tag == _MERGE:
            continue
        key: Any = loader.construct_object(key_node, deep=True)  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType] - untyped
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is not text; put it in quotes", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(path: Path) -> Any:
    """The document in a file. Raises `YamlError`."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - derives from SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise YamlError(f"cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise YamlError(f"{line}{error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise YamlError(f"is not YAML: {error}") from error
