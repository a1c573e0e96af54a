"""The papers' tables: `tables` trains and scores their cells, `trial` tries all recipes in thin nets."""

from a2s_repro.reproduction.tables import Reproduction, cells
from a2s_repro.reproduction.trial import smoke

__all__ = ["Reproduction", "cells", "smoke"]
