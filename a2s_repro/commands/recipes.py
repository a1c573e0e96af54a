"""List the recipes with their published numbers.

A recipe holds every setting of an experiment of the papers. With its name, all of them are printed, with the net's
parameters and multiply-accumulates.
"""

import argparse

from a2s_repro.commands.options import add_json_option, print_results
from a2s_repro.errors import InputError

EXAMPLES = """\
  a2s recipes --table a2s:3
  a2s recipes --cost
  a2s recipes voc12/attention3_esupv
  a2s recipes voc12/attention3_esupv --json mine.json      for `a2s train --recipe mine.json`"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar="RECIPE", help="show its settings, its numbers and its command (default: list all)"
    )
    parser.add_argument("--table", metavar="TABLE", help="table of a paper: list its recipes alone, such as a2s:3")
    parser.add_argument(
        "--cost", action="store_true", help="list parameters and multiply-accumulates of the nets: for a training crop"
    )
    add_json_option(parser)


def main(arguments: argparse.Namespace) -> None:
    from a2s_repro.recipes import OTHER_SYSTEMS, RECIPES, find_recipe, recipes_of

    names = arguments.words
    if names and names[0] in ("list", "show"):  # the old spelling
        names = names[1:]
    recipes = [find_recipe(name) for name in names]
    if arguments.json and (arguments.cost or len(recipes) != 1):
        raise InputError("--json writes the settings of one recipe: name it, and leave out --cost.")
    if recipes and not arguments.cost:
        description = "\n\n".join(recipe.description() for recipe in recipes)
        print_results(description, recipes[0].config(), arguments.json)
        return
    recipes = recipes or (recipes_of(arguments.table) if arguments.table else list(RECIPES.values()))
    if arguments.cost:
        for recipe in recipes:
            print(f"{recipe.name:<42} {recipe.cost()}")
        return
    rows = [
        (recipe.name, *number)
        for recipe in recipes
        for number in recipe.published or (("", "no published number", ""),)
        if arguments.table in (None, number[0])
    ]
    others = [(name, table, "mIoU", value) for table, name, value in OTHER_SYSTEMS if arguments.table in (None, table)]
    for name, table, metric, value in rows:
        print(f"{name:<42} {table:<13} {metric:<15} {value}".rstrip())
    for name, table, metric, value in others:
        print(f"({name}, another group's)".ljust(42) + f" {table:<13} {metric:<15} {value}")
    numbers = sum(bool(table) for _, table, *_ in rows)
    print(f"{len(recipes)} recipes with {numbers} numbers; {len(others)} numbers of other groups' systems")
