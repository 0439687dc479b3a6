"""What is pruned, what is left, and that both are told."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from singlecard.errors import OptionError
from singlecard_calib import layers as calib_layers
from singlecard_calib import pruning
from singlecard_calib.pruning import holds_2_4, prune


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 4 * 4, 10)
    ).eval()


def kept_of_fours(weight: torch.Tensor) -> torch.Tensor:
    """Work 2:4 out by its definition, along axis 1, element by element."""
    result = weight.clone()
    for out in range(weight.shape[0]):
        for place in torch.cartesian_prod(
            torch.arange(0, weight.shape[1]), *(torch.arange(n) for n in weight.shape[2:])
        ).reshape(-1, weight.ndim - 1):
            channel, rest = int(place[0]), tuple(place[1:].tolist())
            first = channel - channel % 4
            four = weight[(out, slice(first, first + 4), *rest)].abs()
            if int((four > four[channel - first]).sum()) >= 2:
                result[(out, channel, *rest)] = 0
    return result


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.83])
def test_each_layer_as_torch_prunes_it(amount: float) -> None:
    """Users compare with torch.nn.utils.prune; the same amount must give the same zeros."""
    model, expected = small(), small()
    prune(model, amount)
    for layer in (expected[0], expected[3]):
        torch_prune.l1_unstructured(layer, "weight", amount)
    for mine, theirs in zip((model[0], model[3]), (expected[0], expected[3]), strict=True):
        assert torch.equal(mine.weight, theirs.weight)


def test_all_layers_together_as_torch_prunes_them() -> None:
    """A global share takes more from layers with small weights."""
    model, expected = small(), small()
    report = prune(model, 0.4, scope="global")
    torch_prune.global_unstructured(
        [(expected[0], "weight"), (expected[3], "weight")],
        pruning_method=torch_prune.L1Unstructured,
        amount=0.4,
    )
    assert torch.equal(model[0].weight, expected[0].weight)
    assert torch.equal(model[3].weight, expected[3].weight)
    shares = [row.zeros_after / torch.Size(row.shape).numel() for row in report.layers]
    assert shares[0] != pytest.approx(shares[1], abs=0.01)


def test_amounts_hold_among_equal_weights() -> None:
    """A quantized weight has many equal magnitudes: no more of them may go than asked for."""
    model = nn.Linear(10, 10)
    with torch.no_grad():
        model.weight.fill_(0.5)
    assert prune(model, 0.3).layers[0].zeros_after == 30
    assert prune(model, 0.3).layers[0].zeros_after == 30  # zeros are the least magnitudes


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(12, 3),
        nn.Conv1d(8, 3, 2),
        nn.Conv2d(8, 6, 3, groups=2),
        nn.Conv3d(4, 2, (1, 2, 2)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_fours_lie_along_the_input_channels(layer: Any) -> None:
    """Sparse tensor cores read no other layout: fours along another axis speed up nothing."""
    expected = kept_of_fours(layer.weight.detach())
    assert not holds_2_4(layer.weight)
    report = prune(layer, pattern="2:4")
    assert torch.equal(layer.weight, expected)
    assert holds_2_4(layer.weight)
    assert report.layers[0].zeros_after * 2 == layer.weight.numel()


@pytest.mark.parametrize("layer", [Conv1D(6, 8), nn.ConvTranspose2d(8, 6, 3)], ids=["hf", "conv"])
def test_fours_where_inputs_come_first(layer: Any) -> None:
    """GPT-2's linear layers keep their weight as [in, out]."""
    expected = kept_of_fours(layer.weight.detach().movedim(0, 1)).movedim(0, 1)
    prune(layer, pattern="2:4")
    assert torch.equal(layer.weight, expected)
    assert holds_2_4(layer.weight, axis=0)


def test_of_equal_ones_two_go() -> None:
    """Equal magnitudes must not leave three, or one."""
    layer = nn.Linear(4, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
    prune(layer, pattern="2:4")
    assert layer.weight.tolist() == [[0.0, 0.0, 1.0, -1.0]]


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Linear(10, 4), "multiples of 4, got 10"),
        (nn.Conv2d(8, 8, 3, groups=8), "got 1"),
        (nn.ConvTranspose2d(8, 8, 3, groups=4), "got 2 in each of 4 groups"),
    ],
)
def test_what_fours_do_not_divide_is_left(layer: Any, said: str) -> None:
    """Half of such a layer pruned would cost accuracy, and hold no pattern."""
    before = layer.weight.detach().clone()
    report = prune(layer, pattern="2:4")
    assert not report.layers and said in report.left[0].reason
    assert torch.equal(layer.weight, before)
    assert said in " ".join(str(report).split())


def parametrized() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(8, 4))


def masked() -> nn.Module:
    return torch_prune.random_unstructured(nn.Linear(8, 4), "weight", 0.5)


def normed() -> nn.Module:
    with pytest.warns(FutureWarning):
        return torch.nn.utils.weight_norm(nn.Linear(8, 4))


def infinite() -> nn.Module:
    layer = nn.Linear(8, 4)
    with torch.no_grad():
        layer.weight[0, 0] = torch.inf
    return layer


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (parametrized, "remove_parametrizations"),
        (masked, "prune.remove"),
        (normed, "remove_weight_norm"),
        (infinite, "NaN or infinite"),
        (lambda: nn.Linear(8, 4, device="meta"), "meta device"),
        (lambda: nn.Linear(8, 4).to(torch.float8_e5m2), "type torch.float8_e5m2"),
    ],
    ids=["parametrized", "masked", "normed", "infinite", "meta", "float8"],
)
def test_weights_that_are_worked_out_are_left(make: Any, said: str) -> None:
    """What is written into them would be gone with the next call, and nobody told."""
    report = prune(make(), 0.5)
    assert not report.layers and said in report.left[0].reason


def test_a_tied_weight_is_pruned_once() -> None:
    """Pruned twice by share it would lose a part of what is left; and its embedding changes too."""
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=12, n_positions=8)
    config.bos_token_id = config.eos_token_id = 0
    model = GPT2LMHeadModel(config).eval()
    report = prune(model, 0.5)
    rows = {row.name: row for row in report.layers}
    assert rows["lm_head"].tied == ("transformer.wte.weight",)
    assert len(rows) == 5  # four in the block
    kept = prune(model, 0.9, exclude=["transformer.wte"])
    assert [item.name for item in kept.left] == ["lm_head"]
    assert "transformer.wte" in kept.left[0].reason


def test_a_module_used_twice_and_memory_shared_by_two_parameters() -> None:
    """Both are one weight; a parameter that only shares the memory must count the change too."""
    shared = nn.Linear(8, 8)
    other = nn.Linear(8, 8)
    other.weight = nn.Parameter(shared.weight.data)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": other})
    versions = shared.weight._version, other.weight._version
    report = prune(model, 0.5)
    assert [(row.name, row.zeros_after) for row in report.layers] == [("a", 32)]
    assert report.layers[0].tied == ("b.weight", "c.weight")
    assert shared.weight._version > versions[0] and other.weight._version > versions[1]


@pytest.mark.parametrize("settings", [{"amount": 0.5}, {"pattern": "2:4"}], ids=["l1", "2:4"])
def test_compiled_models_notice(settings: dict[str, Any]) -> None:
    """A version counter that stands still leaves the engine with the weights from before."""
    model = small()
    before = [(layer.weight, layer.weight._version) for layer in (model[0], model[3])]
    prune(model, **settings)
    for layer, (weight, version) in zip((model[0], model[3]), before, strict=True):
        assert layer.weight is weight and weight._version > version


def test_shares_of_norms() -> None:
    """They tell how much of a layer is gone before anything is run."""
    layer = nn.Linear(4, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, -1.0, 0.0, 4.0]]))
    row = prune(layer, pattern="2:4").layers[0]
    assert (row.zeros_before, row.zeros_after, row.shape) == (1, 2, (1, 4))
    assert row.removed_l1 == pytest.approx(1 / 8)
    assert row.removed_squared == pytest.approx(1 / 26)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        y = self.linear(x)
        return {"y": y, "more": (y * 2, y.argmax(-1))}


def test_error_of_the_outputs() -> None:
    """The one number by which to decide whether pruning is worth it."""
    torch.manual_seed(0)
    model, data = Nested().eval(), [torch.randn(3, 8) for _ in range(2)]
    with torch.no_grad():
        before = torch.cat([model(x)["y"] for x in data])
        report = prune(model, 0.5, data=(x for x in data))
        after = torch.cat([model(x)["y"] for x in data])
    expected = float((after - before).norm() / before.norm())
    assert report.output_error == pytest.approx(expected, rel=1e-5)
    assert f"{expected:.2e}" in str(report)
    assert prune(model, 0.6).output_error is None


def test_nothing_changes_where_data_cannot_be_used() -> None:
    """An error halfway must not leave half a model behind."""
    model = small()
    before = model[3].weight.detach().clone()
    with pytest.raises(ValueError, match="no calibration data"):
        prune(model, 0.5, data=[])
    with pytest.raises(ValueError, match=r"model\.eval"):
        prune(model.train(), 0.5, data=[torch.ones(1, 8, 4, 4)])
    assert torch.equal(model[3].weight, before)


def test_chosen_modules() -> None:
    """The first and the last layer are those most often left."""
    model = nn.ModuleDict({"head": nn.Linear(4, 4), "body": nn.Sequential(nn.Linear(4, 4))})
    assert [row.name for row in prune(model, 0.5, modules="body").layers] == ["body.0"]
    assert [row.name for row in prune(model, 0.5, exclude=["b*"]).layers] == ["head"]
    with pytest.raises(OptionError, match="no module 'heads': did you mean 'head'"):
        prune(model, 0.5, exclude=["heads"])
    with pytest.raises(OptionError, match="no linear layer or convolution among the modules"):
        prune(model, 0.5, modules=["head"], exclude=["head"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "needs an amount"),
        ({"amount": 1.5}, "above 0 and below 1"),
        ({"amount": 0}, "above 0 and below 1"),
        ({"amount": True}, "above 0 and below 1"),
        ({"amount": 0.3, "pattern": "2:4"}, "removes half"),
        ({"pattern": "2:4", "scope": "global"}, "half of each layer"),
        ({"amount": 0.3, "pattern": "4:8"}, "'unstructured' or '2:4'"),
        ({"amount": 0.3, "scope": "all"}, "'layer' or 'global'"),
    ],
)
def test_arguments_that_are_not_valid(settings: dict[str, Any], said: str) -> None:
    """A number of weights given for a share would remove all of them."""
    with pytest.raises(OptionError, match=said):
        prune(nn.Linear(4, 4), **settings)


def test_a_model_without_layers() -> None:
    """A report of nothing would read as success."""
    with pytest.raises(OptionError, match="ReLU has no linear layer or convolution"):
        prune(nn.ReLU(), 0.5)


def test_a_compiled_model_is_pruned_under_its_own_names() -> None:
    """What torch.compile returns wraps the model, and its names."""
    compiled: Any = torch.compile(nn.Sequential(nn.Linear(4, 4)), backend="eager")
    assert [row.name for row in prune(compiled, 0.5).layers] == ["0"]


@pytest.mark.parametrize("module", [pruning, calib_layers])
def test_examples(module: Any) -> None:
    """Examples are copied."""
    assert doctest.testmod(module).failed == 0
