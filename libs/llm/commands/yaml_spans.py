"""Small changes to the prompts' YAML as text: everything that is not meant to change keeps its bytes.

PyYAML says where each value stands (node marks); only those spans are replaced. What comes out is to be read again and
compared by the caller.
"""

from collections.abc import Iterator
from typing import TypeAlias, cast

import yaml

Arms: TypeAlias = tuple[tuple[str, float], ...]
Edit: TypeAlias = tuple[int, int, str]
"""Start, end and what stands there instead; offsets in characters."""


class SpanError(Exception):
    """A value does not stand where it could be replaced; the message says where to look."""


def rewritten(text: str, key: str, *, version: str, arms: Arms) -> str:
    """The file's text with the active version and the arms of `key` as given; without arms the experiment goes.

    Weights of arms that stand there already in this order are replaced one by one; other arms are written anew, and an
    experiment that the key lacks is put below its `version:`. Raises `SpanError`.
    """
    entry = _mapping(_value_of(_mapping(_compose(text), "the file"), key), key)
    if entry.flow_style:
        raise SpanError(f"{key} is written in braces")
    edits = [*_version_edits(entry, version), *_arms_edits(text, entry, arms)]
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _version_edits(entry: yaml.MappingNode, version: str) -> Iterator[Edit]:
    node = _value_of(entry, "version")
    if not isinstance(node, yaml.ScalarNode):
        raise SpanError("version is not a number in quotes")
    if node.value != version:
        yield node.start_mark.index, node.end_mark.index, _quoted(version, "'" if node.style == "'" else '"')


def _arms_edits(text: str, entry: yaml.MappingNode, arms: Arms) -> Iterator[Edit]:
    pair = _pair(entry, "experiment")
    if pair is None:
        if arms:
            yield _insertion(text, entry, arms)
        return
    if not arms:
        yield _whole_lines(text, pair)
        return
    node = _mapping(_value_of(_mapping(_own(pair, "experiment"), "experiment"), "arms"), "arms")
    named = [name.value for name, _ in node.value]
    if named == [version for version, _ in arms]:
        yield from _weight_edits(node, arms)
    elif node.flow_style:
        yield node.start_mark.index, node.end_mark.index, in_braces(arms)
    else:
        yield node.start_mark.index, _end(node), _in_lines(arms, column=node.start_mark.column, text=text)


def _weight_edits(node: yaml.MappingNode, arms: Arms) -> Iterator[Edit]:
    for (_, value), (version, weight) in zip(node.value, arms, strict=True):
        if not isinstance(value, yaml.ScalarNode):
            raise SpanError(f"the weight of {version} is not a number")
        if _number(value.value) != weight:
            yield value.start_mark.index, value.end_mark.index, _written(weight)


def _insertion(text: str, entry: yaml.MappingNode, arms: Arms) -> Edit:
    node = _value_of(entry, "version")
    at = text.find("\n", node.end_mark.index)
    if at < 0:
        raise SpanError("nothing stands below version")
    at += 1
    indent = " " * entry.start_mark.column
    return at, at, f"{indent}experiment: {{arms: {in_braces(arms)}}}{_newline(text)}"


def _whole_lines(text: str, pair: tuple[yaml.Node, yaml.Node]) -> Edit:
    """From the beginning of the key's line to the end of its value's last line."""
    name, value = pair[0], _own(pair, "experiment")
    start = text.rfind("\n", 0, name.start_mark.index) + 1
    end = text.find("\n", _end(value)) + 1
    if text[start : name.start_mark.index].strip():
        raise SpanError("experiment shares its line with something else")
    return start, end or len(text), ""


def _end(node: yaml.Node) -> int:
    """Where the last value inside ends. A block's own mark lies behind the comments that follow it."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return _end(cast("tuple[yaml.Node, yaml.Node]", node.value[-1])[1])
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return _end(cast("yaml.Node", node.value[-1]))
    return node.end_mark.index


def _compose(text: str) -> yaml.Node:
    try:
        node = cast("yaml.Node | None", yaml.compose(text, Loader=yaml.SafeLoader))  # pyright: ignore[reportUnknownMemberType] - untyped
    except yaml.YAMLError as error:
        raise SpanError(f"is not YAML: {error}") from error
    if node is None:
        raise SpanError("the file is empty")
    return node


def _mapping(node: yaml.Node, name: str) -> yaml.MappingNode:
    if not isinstance(node, yaml.MappingNode):
        raise SpanError(f"{name} holds no names with values")
    return node


def _pair(node: yaml.MappingNode, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    pairs = cast("list[tuple[yaml.Node, yaml.Node]]", node.value)
    return next(((key, value) for key, value in pairs if key.value == name), None)


def _value_of(node: yaml.MappingNode, name: str) -> yaml.Node:
    pair = _pair(node, name)
    if pair is None:
        raise SpanError(f"{name} does not stand there itself")
    return _own(pair, name)


def _own(pair: tuple[yaml.Node, yaml.Node], name: str) -> yaml.Node:
    """The value, which an alias (`*name`) would have elsewhere, before its own key."""
    key, value = pair
    if value.start_mark.index < key.end_mark.index:
        raise SpanError(f"{name} stands there as an alias")
    return value


def in_braces(arms: Arms) -> str:
    """Arms as the file writes them on one line: `{"1.0.0": 90, "1.1.0": 10}`."""
    inside = ", ".join(f"{_quoted(version)}: {_written(weight)}" for version, weight in arms)
    return f"{{{inside}}}"


def _in_lines(arms: Arms, *, column: int, text: str) -> str:
    lines = (f"{_quoted(version)}: {_written(weight)}" for version, weight in arms)
    return f"{_newline(text)}{' ' * column}".join(lines)


def _quoted(version: str, quote: str = '"') -> str:
    return f"{quote}{version}{quote}"


def _written(weight: float) -> str:
    if weight.is_integer():
        return str(int(weight))
    return repr(weight) if "e" not in repr(weight) else f"{weight:.12f}".rstrip("0")


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"
