"""DeepLab-MSc-LargeFOV: the skip-net of one scale."""

from a2s_repro.models.deeplab import DeepLab, Widths


class DeepLabMSc(DeepLab):
    """DeepLab-MSc-LargeFOV: a trained LargeFOV, frozen, with side branches from the image and pool1 to pool4.

    In training the score map is on the 1/8 grid; in evaluation mode it is the sum of full-resolution maps.

    Args:
        num_classes: C, background included.
        pool5a: average pool 3x3 between pool5 and fc6, as the LargeFOV has that it starts from. The authors' MSc nets
            of one scale have it on PASCAL, not on COCO, and MSc share-nets nowhere.
        dropout, widths: as in DeepLabLargeFOV.
    """

    def __init__(
        self, num_classes: int, *, pool5a: bool = False, dropout: float = 0.5, widths: Widths | None = None
    ) -> None:
        super().__init__(num_classes, skip_net=True, pool5a=pool5a, dropout=dropout, widths=widths)
