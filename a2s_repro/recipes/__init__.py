"""Recipes: one for every result of the two papers, those of DeepLab v2, and one of hierarchical attention."""

from a2s_repro.errors import InputError, nearest
from a2s_repro.recipes.a2r import a2r_recipes
from a2s_repro.recipes.a2s import a2s_recipes
from a2s_repro.recipes.deeplab2 import deeplab2_recipes
from a2s_repro.recipes.hierarchical import hierarchical_recipes
from a2s_repro.recipes.published import OTHER_SYSTEMS, PUBLISHED, Published
from a2s_repro.recipes.recipe import PRETRAINED, Recipe
from a2s_repro.recipes.recipe_file import read_recipe

__all__ = ["OTHER_SYSTEMS", "PRETRAINED", "PUBLISHED", "RECIPES", "Published", "Recipe", "find_recipe", "recipes_of"]

_ALL = (*a2s_recipes(), *a2r_recipes(), *deeplab2_recipes(), *hierarchical_recipes())

RECIPES = {recipe.name: recipe for recipe in _ALL}
"""All recipes by name; a recipe comes after the one it starts from."""


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, or of a file whose name ends in .json (see `read_recipe`).

    Raises InputError with the nearest names if there is none.
    """
    if name.endswith(".json"):
        return read_recipe(name, RECIPES)
    if name not in RECIPES:
        raise InputError(
            f"there is no recipe '{name}'; the nearest are {nearest(name, RECIPES)}; `a2s recipes` lists all."
        )
    return RECIPES[name]


def recipes_of(table: str) -> list[Recipe]:
    """The recipes with a number in a table, such as "a2s:3". Raises InputError naming the tables if there is none."""
    recipes = [recipe for recipe in RECIPES.values() if any(number.table == table for number in recipe.published)]
    if not recipes:
        tables = sorted({number.table for numbers in PUBLISHED.values() for number in numbers})
        raise InputError(f"there is no table '{table}'; the tables are {', '.join(tables)}.")
    return recipes
