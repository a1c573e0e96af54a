"""Reproduces the papers' tables: trains and scores the recipe of every cell, and writes both numbers to RESULTS.md."""

import dataclasses
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from a2s_repro.data.lists import read_list
from a2s_repro.errors import InputError
from a2s_repro.files import replacing, sha256_of
from a2s_repro.inference.crf import CRF
from a2s_repro.inference.evaluation import evaluate, server_folder
from a2s_repro.inference.segmenter import load_model
from a2s_repro.recipes import PRETRAINED, RECIPES, Published, Recipe, recipes_of
from a2s_repro.recipes.published import WITHOUT_CRF
from a2s_repro.runtime.folder_lock import FolderLock
from a2s_repro.runtime.precision import precision_named
from a2s_repro.training import Run, train
from a2s_repro.training.run_log import cost
from a2s_repro.training.trainer import NO_EFFECT_ON_TRAINING

RESULT = "result.json"
"""File in a run's folder with the net's scores on the recipe's evaluation set."""


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """Settings for reproducing recipes; interrupted trainings and evaluations resume."""

    data_root: Path
    """Folder with one folder per data set, named by the recipes' `dataset`, each with its lists and classes.txt."""
    pretrained: dict[str, Path]
    """Files of the initial weights in recipes.PRETRAINED."""
    out: Path
    """Folder of RESULTS.md, RESULTS.json and the runs; a run's folder has its recipe's name."""
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Changed fields of all recipes, for a trial; results are marked as changed."""
    starts: dict[str, str] = dataclasses.field(default_factory=dict)
    """Recipes from which others start, and those that take their place; results are marked as changed."""
    device: str = "cpu"
    precision: str = "fp32"
    seed: int = 0
    workers: int | None = None
    """Decoding processes per training process; None: by cores and device."""

    def reproduce(self, recipes: Sequence[Recipe]) -> bool:
        """Trains the recipes and those they start from, and scores them; False if interrupted.

        The results are written after every recipe. Raises InputError naming the recipe; missing files are reported
        before the first training.
        """
        recipes = [self.started(recipe) for recipe in recipes]
        self.check(recipes)
        with FolderLock(self.out):
            for recipe in trainings(recipes, self.started):
                with _naming(recipe):
                    if not self.train(recipe):
                        return False
                    if recipe in recipes:
                        self.score(recipe)
                self.write_results(recipes)
        return True

    def check(self, recipes: Sequence[Recipe]) -> None:
        """Raises InputError naming the recipe for missing weights, data sets, lists or images."""
        read = cache(read_list)
        for recipe in trainings(recipes, self.started):
            root = self.data_root / recipe.dataset
            with _naming(recipe):
                if not root.is_dir():
                    raise InputError(f"{root} is missing: prepare the data set (docs/datasets.md), or give --datasets.")
                if recipe.init in PRETRAINED and not recipe.start(self.out, self.pretrained).is_file():
                    file = recipe.start(self.out, self.pretrained)
                    raise InputError(f"{file} is missing: get the weights of {recipe.init} (docs/reproducing.md).")
                read(root / recipe.training_set, root)
                if recipe in recipes:
                    read(root / recipe.evaluation_set, root, labelled=not recipe.hidden_labels)

    def started(self, recipe: Recipe) -> Recipe:
        """The recipe with the start that `starts` gives it; it keeps its published numbers."""
        return dataclasses.replace(recipe, init=self.starts.get(recipe.init, recipe.init))

    def run(self, recipe: Recipe) -> Run:
        """The settings of a recipe's run."""
        root = self.data_root / recipe.dataset
        return Run(
            data_root=root,
            out=self.out / recipe.name,
            init=recipe.start(self.out, self.pretrained),
            resume="auto",
            classes=root / "classes.txt",
            device=self.device,
            precision=self.precision,
            seed=self.seed,
            workers=self.workers,
        )

    def train(self, recipe: Recipe) -> bool:
        """Trains a recipe, unless final.pth exists; False if interrupted. Its initial weights must exist.

        Raises InputError as `train` does, and if the folder holds a run with other settings.
        """
        changed, run = recipe.changed(**self.changes), self.run(recipe)
        if (run.out / "config.json").exists():
            earlier = json.loads((run.out / "config.json").read_text())
            theirs = {**Recipe.of_config(earlier["recipe"]).config(), **earlier["run"]}
            theirs["precision"] = precision_named(theirs["precision"])
            ours = changed.config() | {"seed": run.seed, "precision": precision_named(run.precision)}
            fields = [name for name in ours if name not in NO_EFFECT_ON_TRAINING or name == "init"]
            theirs["init"] = earlier["recipe"].get("init", recipe.init)  # of the run it is the file
            other = [name for name in fields if theirs[name] != ours[name]]
            if other:
                values = ", ".join(f"{name} {theirs[name]} instead of {ours[name]}" for name in other)
                raise InputError(f"{run.out} holds a run with {values}: give another --out.")
        if (run.out / "final.pth").exists():
            return True
        return not train(changed, run).interrupted

    def score(self, recipe: Recipe) -> None:
        """Scores a trained recipe, or segments for VOC's server, unless these weights have a result."""
        changed, run = recipe.changed(**self.changes), self.run(recipe)
        file, earlier = run.out / "final.pth", run.out / RESULT
        weights = sha256_of(file)
        if earlier.exists() and json.loads(earlier.read_text()).get("weights") == weights:
            return
        model, meta = load_model(file, self.device)
        image_set = run.data_root / recipe.evaluation_set
        items = read_list(image_set, run.data_root, labelled=not recipe.hidden_labels)
        folder = server_folder(run.out, image_set.stem) if recipe.hidden_labels else None
        classes = meta["classes"]
        settings = changed.evaluation()
        result = evaluate(model, items, classes=classes, label_folder=folder, **settings)
        metrics = [number.metric for number in recipe.published]
        chain = trainings([recipe], self.started)
        other = [link.init for link in chain if link.init != RECIPES.get(link.name, link).init]
        changes = {"init": other[0], **self.changes} if other else self.changes
        content: dict[str, Any] = {"changes": changes, "weights": weights, "scores": {}, "note": ""}
        if recipe.hidden_labels:
            content["note"] = f"not scored: upload {folder.relative_to(self.out)} to VOC's evaluation server"
        else:
            content["scores"] = {name: result.score(name, classes) for name in metrics if name != WITHOUT_CRF}
            if WITHOUT_CRF in metrics:
                without = evaluate(model, items, classes=classes, **settings | {"crf": None})
                content["scores"][WITHOUT_CRF] = without.score("mIoU", classes)
            content["summary"] = result.summary(classes)
        with replacing(run.out / RESULT) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")

    def commands(self, recipes: Sequence[Recipe]) -> list[str]:
        """The equivalent commands step by step, without RESULTS.md."""
        options = {"device": self.device, "precision": self.precision, "seed": self.seed}
        options |= {} if self.workers is None else {"workers": self.workers}
        lines = []
        recipes = [self.started(recipe) for recipe in recipes]
        for recipe in trainings(recipes, self.started):
            run = self.run(recipe)
            command = recipe.command(self.data_root, self.out, self.pretrained)
            settings = {"classes": run.classes, "resume": run.resume, **self.changes, **options}
            lines.append(f"{command} {_options(settings)}")
            if recipe in recipes:
                evaluation = recipe.changed(**self.changes).evaluation()
                settings = {
                    "model": run.out / "final.pth",
                    "data_root": run.data_root,
                    "list": run.data_root / recipe.evaluation_set,
                    **{name: value for name, value in evaluation.items() if value},
                    "device": self.device,
                    **({"out": run.out} if recipe.hidden_labels else {"json": run.out / "scores.json"}),
                }
                no_labels = " --no-labels" if recipe.hidden_labels else ""
                lines.append(f"a2s evaluate {_options(settings)}{no_labels}")
                if any(number.metric == WITHOUT_CRF for number in recipe.published):
                    del settings["crf"]
                    settings["json"] = run.out / "scores_without_crf.json"
                    lines.append(f"a2s evaluate {_options(settings)}")
        return lines

    def results(self, recipes: Iterable[Recipe]) -> list[dict[str, Any]]:
        """One row of plain values per published number in the recipes' tables, including recipes not run."""
        requested = {number.table for recipe in recipes for number in recipe.published}
        tables = sorted(requested | {number.table for recipe in self._scored() for number in recipe.published})
        return [
            self._row(recipe, number)
            for table in tables
            for recipe in recipes_of(table)
            for number in recipe.published
            if number.table == table
        ]

    def write_results(self, recipes: Iterable[Recipe]) -> None:
        """Writes RESULTS.json and RESULTS.md from the runs' folders."""
        rows = self.results(recipes)
        with replacing(self.out / "RESULTS.json") as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n")
        with replacing(self.out / "RESULTS.md") as temporary:
            temporary.write_text(_markdown(rows))

    def _scored(self) -> list[Recipe]:
        return [recipe for recipe in RECIPES.values() if (self.out / recipe.name / RESULT).exists()]

    def _row(self, recipe: Recipe, number: Published) -> dict[str, Any]:
        row = {"table": number.table, "recipe": recipe.name, "metric": number.metric, "paper": number.value}
        folder = self.out / recipe.name
        if not (folder / RESULT).exists():
            return row | {"ours": None, "note": "not run"}
        result, config = (json.loads((folder / name).read_text()) for name in (RESULT, "config.json"))
        ours = result["scores"].get(number.metric)
        compared = ours is not None and isinstance(number.value, float)
        changes = ", ".join(f"{name} {value}" for name, value in result["changes"].items())
        return row | {
            "ours": ours,
            "difference": ours - number.value if compared else None,
            "iterations": config["recipe"]["max_iter"],
            **cost(folder)._asdict(),
            "precision": precision_named(config["run"]["precision"]),
            "device": "cpu" if config["run"]["device"] == "cpu" else config["versions"]["gpu"],
            "commit": config["git_commit"],
            "log": f"{recipe.name}/log.jsonl",
            "note": "; ".join(filter(None, (changes and f"changed: {changes}", result["note"]))),
        }


@contextmanager
def _naming(recipe: Recipe) -> Iterator[None]:
    """Prefixes the message of an InputError with the recipe's name."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{recipe.name}: {error}") from error


def _options(settings: dict[str, Any]) -> str:
    """Command-line options for settings; the parameters of a CRF and the items of a tuple are separate words."""
    words = []
    for name, value in settings.items():
        values = str(value).split() if isinstance(value, CRF) else value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def cells(table: str, names: Sequence[str] = ()) -> list[Recipe]:
    """The recipes of a table, or the named ones; a name may omit its group ("voc12/max2" or "max2").

    Raises InputError for an unknown table or name.
    """
    recipes = recipes_of(table)
    for name in names:
        if not any(_is_called(recipe, name) for recipe in recipes):
            known = ", ".join(recipe.name for recipe in recipes)
            raise InputError(f"{table} has no cell '{name}'; its cells are {known}.")
    return [recipe for recipe in recipes if not names or any(_is_called(recipe, name) for name in names)]


def _is_called(recipe: Recipe, name: str) -> bool:
    return name in (recipe.name, recipe.name.partition("/")[2])


def trainings(recipes: Iterable[Recipe], started: Callable[[Recipe], Recipe] = lambda recipe: recipe) -> list[Recipe]:
    """The recipes and those they start from, without duplicates; a recipe comes after the one it starts from.

    `started` gives the recipes that others start from their own starts.
    """
    ordered: dict[str, Recipe] = {}
    for recipe in recipes:
        chain = [recipe]
        while chain[0].init in RECIPES:
            chain.insert(0, started(RECIPES[chain[0].init]))
        ordered |= {link.name: link for link in chain}
    return list(ordered.values())


_COLUMNS = (
    *("recipe", "metric", "paper", "ours", "difference", "iterations", "time", "peak memory"),
    *("precision", "device", "commit", "log", "note"),
)


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["# Results", "", "Written by `a2s reproduce`. Scores are in per cent; time and memory are of training."]
    for table in dict.fromkeys(row["table"] for row in rows):
        lines += ["", f"## {table}", "", f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
        lines += [f"| {' | '.join(_spelled(row))} |" for row in rows if row["table"] == table]
    return "\n".join(lines) + "\n"


def _spelled(row: dict[str, Any]) -> list[str]:
    """The cells of a row, in the order of _COLUMNS."""
    texts = {name: str(value) for name, value in row.items() if value is not None}
    for name, form in (("paper", ".2f"), ("ours", ".2f"), ("difference", "+.2f")):
        if isinstance(row.get(name), float):
            texts[name] = format(row[name], form)
    if "seconds" in row:
        texts["time"] = str(timedelta(seconds=round(row["seconds"])))
        texts["peak memory"] = f"{row['peak_memory'] / 2**20:.0f} MiB"
        texts["log"] = f"[log]({row['log']})"
    return [texts.get(name, "") for name in _COLUMNS]
