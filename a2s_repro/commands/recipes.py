"""List the recipes with their published numbers.

A recipe has every setting of an experiment of the papers; given by name, it is printed whole.
"""

import argparse

EXAMPLES = """\
  a2s recipes --table a2s:3
  a2s recipes voc12/attention3_esupv"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar="RECIPE", help="show its settings, its numbers and its command (default: list all)"
    )
    parser.add_argument("--table", metavar="TABLE", help="table of a paper: list its recipes alone, such as a2s:3")


def main(arguments: argparse.Namespace) -> None:
    from a2s_repro.recipes import RECIPES, find_recipe, recipes_of

    names = arguments.words
    if names and names[0] in ("list", "show"):  # the old spelling
        names = names[1:]
    if names:
        print("\n\n".join(find_recipe(name).description() for name in names))
        return
    for recipe in recipes_of(arguments.table) if arguments.table else RECIPES.values():
        for table, metric, value in recipe.published:
            if arguments.table in (None, table):
                print(f"{recipe.name:<42} {table:<13} {metric:<15} {value}")
