"""A server's entry put into a host's file, which keeps everything else: other servers, comments, order, layout."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Literal

from diffing_mcp.core.atomic_files import replace_synced
from diffing_mcp.core.errors import InvalidInput

BACKUP = ".before-diffing"
_INDENT = "  "
# Where the parser keeps the name of a quoted key and of a bare one.
_NAMES = ("characters", "name")


def write_entry(path: Path, form: Literal["json", "toml"], key: str, server: str, entry: Mapping[str, Any]) -> bool:
    """Put `entry` under `key`.`server` of a file. What was there is kept beside it as NAME.before-diffing.

    A file that is new may be read by its owner alone, as it may hold a token; one that was there keeps its mode.

    Returns:
        Whether anything changed.

    Raises:
        InvalidInput: the file cannot be read as what it should be, or cannot be written. It is left as it is.
    """
    path = path.expanduser().resolve()  # a link from a folder of dotfiles stays a link
    try:
        before = path.read_bytes().decode("utf-8") if path.exists() else ""
        insert = with_json_entry if form == "json" else with_toml_entry
        after = insert(before, key, server, entry)
        if after == before:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        if before:
            shutil.copy2(path, path.with_name(path.name + BACKUP))
        replace_synced(path, after.encode("utf-8"), mode=path.stat().st_mode & 0o7777 if path.exists() else 0o600)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be changed: {error}. Add the entry by hand.") from error
    except ValueError as error:
        raise InvalidInput(
            f"{path} cannot be read as {form.upper()} ({error}), so it is left as it is. Correct it, or add the entry "
            "by hand."
        ) from error
    return True


def with_toml_entry(text: str, key: str, server: str, entry: Mapping[str, Any]) -> str:
    """A TOML document with `key`.`server` set.

    Raises:
        ValueError: it is no TOML, or `key` is no table in it.
    """
    import tomlkit

    document = tomlkit.parse(text)
    servers = document.setdefault(key, tomlkit.table(is_super_table=True))
    if not isinstance(servers, MutableMapping):
        raise ValueError(f"`{key}` is no table")
    if server not in servers or servers[server] != entry:
        servers[server] = dict(entry)
    return tomlkit.dumps(document)


def with_json_entry(text: str, key: str, server: str, entry: Mapping[str, Any]) -> str:
    """A JSON document, which may have comments and trailing commas, with `key`.`server` set.

    Raises:
        ValueError: it is no JSON, or `key` is no object in it.
    """
    if not text.strip():
        return json.dumps({key: {server: entry}}, indent=2, ensure_ascii=False) + "\n"
    import json5
    from json5.dumper import ModelDumper
    from json5.dumper import dumps as text_of
    from json5.loader import ModelLoader
    from json5.loader import loads as parsed
    from json5.utils import JSON5DecodeError

    # The parser refuses an escaped backslash before an x, as in "C:\\Users\\xu": to it they are another character.
    shown = json.dumps(entry, ensure_ascii=False)
    mark = next(character for character in map(chr, range(0xE000, 0xF900)) if character not in text + shown)
    entry = json.loads(_marked(shown, mark))
    marked = _marked(text, mark)
    try:
        content = json5.loads(marked)
        document = parsed(marked, loader=ModelLoader())
    except JSON5DecodeError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    if not isinstance(content, dict) or not isinstance(content.get(key, {}), dict):
        raise ValueError(f"`{key}` is no object" if isinstance(content, dict) else "no object")
    if content.get(key, {}).get(server) == entry:
        return text
    root = document.value
    if key in content:
        _set(root.values[_place(root, key)], server, entry, depth=2)
    else:
        _set(root, key, {server: entry}, depth=1)
    written = str(text_of(document, dumper=ModelDumper()))  # type: ignore[arg-type]  # as its own documentation does
    return written.replace(mark, _BACKSLASH)


_BACKSLASH = "\\\\"
"""A backslash, escaped."""
_ESCAPE = re.compile(r"\\.", re.DOTALL)


def _marked(text: str, mark: str) -> str:
    """JSON with a character that it does not hold in place of each escaped backslash."""
    return _ESCAPE.sub(lambda escape: mark if escape[0] == _BACKSLASH else escape[0], text)


def _place(node: Any, name: str) -> int | None:
    """Where a parsed object has a member; of members with the same name the last one counts."""
    found = [place for place, key in enumerate(node.keys) if name in (getattr(key, a, None) for a in _NAMES)]
    return found[-1] if found else None


def _set(node: Any, name: str, value: Any, depth: int) -> None:
    """Set a member of a parsed object; a new one becomes the first. `depth`: of its members, in levels of layout."""
    from json5.loader import ModelLoader
    from json5.loader import loads as parsed

    layout = "\n" + depth * _INDENT
    shown = json.dumps({name: value}, indent=2, ensure_ascii=False).replace("\n" + _INDENT, layout)
    [(new_key, new_value)] = parsed(shown, loader=ModelLoader()).value.key_value_pairs
    new_value.wsc_after = []
    if (place := _place(node, name)) is not None:
        new_value.wsc_before, new_value.wsc_after = node.values[place].wsc_before, node.values[place].wsc_after
        node.values[place] = new_value
        return
    # What stands before the first member, comments among it, stays before that member.
    if node.keys:
        node.keys[0].wsc_before = [*node.leading_wsc, *node.keys[0].wsc_before]
    else:
        new_value.wsc_after = [*node.leading_wsc, layout.removesuffix(_INDENT)]
    node.leading_wsc, new_key.wsc_before = [], [layout]
    node.keys.insert(0, new_key)
    node.values.insert(0, new_value)
