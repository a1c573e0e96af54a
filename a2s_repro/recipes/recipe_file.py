"""Recipes in files: what `a2s recipes NAME --json` prints, changed by hand."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from a2s_repro.errors import InputError, nearest
from a2s_repro.recipes.recipe import FIELDS, Recipe

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def read_recipe(path: str | os.PathLike, known: Mapping[str, Recipe]) -> Recipe:
    """The recipe of a JSON file; fields that it lacks have their defaults.

    known: recipes by name; one that is not changed keeps its published numbers.

    Raises InputError for a file that is no JSON object, an unknown key (with the nearest names), and a value of another
    kind or from which no net can be made.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not a JSON file: start from the output of `a2s recipes NAME --json`.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no recipe: start from the output of `a2s recipes NAME --json`.")
    _check_keys(path, "recipes have", content, FIELDS)
    for name, value in content.items():
        kind = FIELDS[name].type
        if kind in _KINDS and not _is(kind, value):
            raise InputError(f"{path}: {name} is {json.dumps(value)}; it must be {_KINDS[kind]}.")
    content.setdefault("name", Path(path).stem)
    try:
        recipe = Recipe.of_config(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if isinstance(content.get("head"), dict):
        _check_keys(path, "this head has", content["head"], recipe.head.config())
    return recipe if recipe == known.get(recipe.name) else dataclasses.replace(recipe, published=())


def _check_keys(path: str | os.PathLike, owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            raise InputError(f"{path}: {owner} no field '{name}'; the nearest are {nearest(name, known)}.")


def _is(kind: type, value: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind
