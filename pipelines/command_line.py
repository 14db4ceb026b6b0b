"""What the recipes' commands share: options made of the settings, and one-line errors."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from tfdistill.errors import CertificationError, TfdistillError

_PLAIN = (int, float, str)


def add_settings(
    parser: argparse.ArgumentParser, prefix: str, kind: type, defaults: Any, title: str
) -> None:
    """Adds an option for every setting of a stage that is a number, a text or a list of them.

    Args:
        parser: Where to.
        prefix: Of the options: "pruning" makes `--pruning-sparsity` of the setting `sparsity`.
        kind: The settings' class.
        defaults: An object of the class with the recipe's defaults.
        title: The group's title in the help.
    """
    group = parser.add_argument_group(title)
    for name, (base, many) in _plain_fields(kind).items():
        default = getattr(defaults, name)
        shown = " ".join(map(str, default)) if many else default
        options: dict[str, Any] = {"default": default, "dest": f"{prefix}.{name}"}
        if base is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif base is _bool_or_word:
            options |= {"type": base, "metavar": "YES|NO|WORD"}
        else:
            options |= {"type": base, "metavar": base.__name__.upper()}
            if many:
                options["nargs"] = "*"
        text = f"{_setting_help(kind, name)} (default: {shown if shown != '' else 'none'})"
        group.add_argument(f"--{prefix}-{name.replace('_', '-')}", help=text, **options)


def settings_from(arguments: argparse.Namespace, prefix: str, kind: type, **more: Any) -> Any:
    """The settings that `add_settings` made options of.

    Args:
        arguments: What was parsed.
        prefix: As given to `add_settings`.
        kind: The settings' class.
        **more: Settings that have no option.
    """
    given = {name: getattr(arguments, f"{prefix}.{name}") for name in _plain_fields(kind)}
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return kind(**{**given, **lists, **more})


def run_command(command: Callable[[], object]) -> int:
    """Runs a recipe's command; an error of the library is one line, not a traceback.

    Returns:
        The exit status: 0; 1 where an artifact failed its certificate; 2 for other errors; 130
        after Ctrl-C.
    """
    try:
        command()
    except TfdistillError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1 if isinstance(error, CertificationError) else 2
    except KeyboardInterrupt:
        return 130
    return 0


def _plain_fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """What a command line can hold: setting name to what makes it of a text, and if a list."""
    found = {}
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        choices = [part for part in typing.get_args(hint) if part is not type(None)]
        plain = [part for part in choices if part in _PLAIN]  # a number, where a schedule may be
        if hint in (*_PLAIN, bool):
            found[field.name] = (hint, False)
        elif bool in choices and any(typing.get_origin(part) is typing.Literal for part in choices):
            found[field.name] = (_bool_or_word, False)
        elif several := [of for part in (hint, *choices) if (of := _item(part)) in _PLAIN]:
            found[field.name] = (several[0], True)
        elif len(plain) == 1 and typing.get_origin(hint) in (typing.Union, types.UnionType):
            found[field.name] = (plain[0], False)
    return found


def _item(kind: Any) -> Any:
    """What a tuple or sequence is of; `None` for anything else."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) in (tuple, Sequence) else None


def _bool_or_word(text: str) -> bool | str:
    """True and False as a command line says them; another word is left to the settings' check."""
    return {"yes": True, "no": False}.get(text, text)


def _setting_help(kind: type, name: str) -> str:
    """What the class's docstring says of a setting, in one line."""
    text = inspect.getdoc(kind) or ""
    found = re.search(rf"^    {name}: (.*?)(?=^    \w+: |^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    said = " ".join(found.group(1).split()) if found else name.replace("_", " ")
    return said.replace("%", "%%").replace("`", "")
