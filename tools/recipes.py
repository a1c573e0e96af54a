"""Lists the recipes with the numbers that the papers publish for them, or shows all settings of one."""

from _run import run

import argparse

from a2s_repro.recipes import RECIPES, find_recipe, recipes_of

EXAMPLE = """examples:
  python tools/recipes.py list --table a2s:3
  python tools/recipes.py show voc12/attention3_esupv"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="a line for each published number")
    listing.add_argument("--table", help="only this table, such as a2s:3")
    showing = commands.add_parser("show", help="every setting of a recipe, its numbers and its command")
    showing.add_argument("name")
    arguments = parser.parse_args()

    if arguments.command == "show":
        print(find_recipe(arguments.name).description())
        return 0
    for recipe in recipes_of(arguments.table) if arguments.table else RECIPES.values():
        for table, metric, value in recipe.published:
            if arguments.table in (None, table):
                print(f"{recipe.name:<42} {table:<13} {metric:<15} {value}")
    return 0


if __name__ == "__main__":
    run(main)
