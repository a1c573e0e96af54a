"""docs/operators.md: both halves of every snippet are equivalent, and the example trains."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from a2s_repro import ops
from tests.markdown import snippets

MARK = "\n# is equivalent to\n"
EQUIVALENTS = [
    pytest.param(snippet, id=snippet.splitlines()[0])
    for snippet in snippets("docs/operators.md", "Equivalents")
    if MARK in snippet
]


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def inputs() -> dict[str, Tensor | list[Tensor] | tuple[int, int]]:
    random = torch.Generator().manual_seed(0)

    def maps(channels: int, *sides: int) -> list[Tensor]:
        return [torch.randn(2, channels, side, side + 2, generator=random) for side in sides]

    scores, (logits,), (x, base) = maps(5, 9, 7, 5), maps(3, 9), maps(5, 12, 9)
    return {
        "scores": scores,
        "features": maps(4, 9) + maps(6, 5),
        "logits": logits,
        "recalibration": torch.rand(2, 5, 9, 11, generator=random),
        "x": x,
        "size": (17, 13),
        "planes": maps(45, 5)[0],
        "base": base,
        "weight": torch.randn(8, 10, 3, 3, generator=random),
        "bias": torch.randn(8, generator=random),
    }


def run(source: str) -> dict:
    """The names defined by the source, without the inputs."""
    given = {"torch": torch, "F": F, "ops": ops, "resized": resized, **inputs()}
    names = dict(given)
    exec(source, names)
    return {name: value for name, value in names.items() if name not in given and name != "__builtins__"}


@pytest.mark.parametrize("snippet", EQUIVALENTS)
def test_both_halves_of_a_snippet_are_equivalent(snippet: str) -> None:
    """The tolerance is 1e-5, because F.interpolate rounds coordinates differently."""
    first, second = map(run, snippet.split(MARK))
    assert first and first.keys() <= second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-5, atol=1e-5)


def test_every_operator_has_an_equivalent() -> None:
    text = "".join(snippet.values[0] for snippet in EQUIVALENTS)
    assert not [name for name in ops.__all__ if name != "use_backend" and f"ops.{name}(" not in text]


def test_the_helper_in_the_document_is_the_one_used_here() -> None:
    names = {"F": F}
    exec(snippets("docs/operators.md", "Equivalents")[0], names)
    x = inputs()["x"]
    assert torch.equal(names["resized"](x, (17, 13)), resized(x, (17, 13)))


def run_example(backend: str) -> dict:
    torch.manual_seed(0)
    names: dict = {}
    with ops.use_backend(backend):
        exec(snippets("docs/operators.md", "In your own network")[0], names)
    return names


def test_the_example_trains_a_user_defined_net() -> None:
    native, reference = run_example("native"), run_example("reference")
    assert native["merged"].shape == (2, 21, 9, 11) and native["weights"].shape == (2, 2, 9, 11)
    assert native["predicted"].shape == (2, 65, 81) and native["predicted"].dtype == torch.uint8
    assert torch.equal(native["predicted"], reference["predicted"])
    theirs = dict(reference["net"].named_parameters())
    for name, parameter in native["net"].named_parameters():
        assert parameter.grad.abs().max() > 0
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6)
