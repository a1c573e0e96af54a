"""A recipe of this project's own, apart from the papers' tables: hierarchical attention on Attention to Scale's net.

Tao, Sapra, Catanzaro, Hierarchical Multi-Scale Attention for Semantic Segmentation (arXiv:2005.10821), has other
backbones and data sets. The recipe is that of voc12/attention2_esupv but for the merge, so that the two merges compare;
nobody has published its score.
"""

from a2s_repro.recipes.recipe import Recipe


def hierarchical_recipes() -> list[Recipe]:
    """Attention to Scale's net over two scales, merged hierarchically; evaluated at any scales (`--scales`)."""
    return [
        Recipe(
            "ours_voc12/hierarchical2_esupv",
            ours=("merge",),
            scales=(1, 0.5),
            merge="hierarchical",
            extra_supervision=True,
        )
    ]
