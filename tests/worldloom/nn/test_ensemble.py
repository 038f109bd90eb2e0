"""The stacked ensemble equals its members one by one."""

from __future__ import annotations

import torch

from worldloom.nn.ensemble import EnsembleMLP, StackedLayer, ensemble_forward
from worldloom.nn.normed import MLP


def make_ensemble() -> EnsembleMLP:
    ensemble = EnsembleMLP(3, 5, (6, 7), 4)
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return ensemble


def member(ensemble: EnsembleMLP, index: int) -> MLP:
    single = MLP(5, (6, 7), 4)
    single.load_state_dict({name: value[index] for name, value in ensemble.state_dict().items()})
    return single


def test_all_members_equal_single_networks() -> None:
    ensemble = make_ensemble()
    x = torch.randn(9, 5)
    together = ensemble(x)
    own_inputs = ensemble(x.repeat(3, 1, 1))
    for index in range(3):
        alone = member(ensemble, index)(x)
        torch.testing.assert_close(together[index], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(own_inputs[index], alone, rtol=1e-5, atol=1e-5)


def test_selected_members_equal_the_same_rows_of_all() -> None:
    ensemble = make_ensemble()
    x = torch.randn(9, 5)
    chosen = torch.tensor([2, 0])
    layers = [layer.select(chosen) for layer in ensemble.stacked]
    torch.testing.assert_close(ensemble_forward(layers, x), ensemble(x)[chosen])


def test_detached_layers_pass_gradient_to_the_input_only() -> None:
    ensemble = make_ensemble()
    x = torch.randn(9, 5, requires_grad=True)
    layers: list[StackedLayer] = [layer.detach() for layer in ensemble.stacked]
    ensemble_forward(layers, x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in ensemble.parameters())


def test_dropout_acts_on_the_first_product() -> None:
    ensemble = make_ensemble()
    x = torch.randn(9, 5)
    none = torch.ones(3, 9, 6)
    torch.testing.assert_close(ensemble_forward(ensemble.stacked, x, none), ensemble(x))
    everything = ensemble_forward(ensemble.stacked, x, torch.zeros(3, 9, 6))
    torch.testing.assert_close(everything, everything[:, :1].expand_as(everything))


def test_members_start_different_with_zero_outputs() -> None:
    ensemble = EnsembleMLP(2, 5, (6,), 4)
    ensemble.reset_parameters(torch.Generator().manual_seed(0))
    assert not torch.equal(ensemble[0].weight[0], ensemble[0].weight[1])  # type: ignore[index]
    assert torch.equal(ensemble(torch.randn(3, 5)), torch.zeros(2, 3, 4))
