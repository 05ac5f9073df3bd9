"""Whole models patched: logits, training, and each bit back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_models import EACH_FAMILY, F32, FAMILIES, LOGITS, batch, build, difference, logits, norms
from torch import nn

from norm_fusion import functional
from norm_fusion.patching import patch_model, unpatch_model


@EACH_FAMILY
def test_logits_are_the_same_and_every_norm_ran_a_kernel(family: str, launches: list[Any]) -> None:
    model = build(family)
    expected = logits(model, family)
    assert not launches
    calls: list[nn.Module] = []
    for module in norms(model):
        module.register_forward_hook(lambda module, *_: calls.append(module))
    report = patch_model(model)
    found = logits(model, family)
    assert difference(found, expected) < LOGITS
    assert sum(map(len, report.replaced.values())) == FAMILIES[family][2] == len(norms(model)) == len(set(calls))
    assert not report.unknown and not report.left_alone
    assert len(launches) == len(calls)


@EACH_FAMILY
def test_kernels_of_zeros_would_be_seen(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(family)
    expected = logits(model, family)
    patch_model(model)
    monkeypatch.setattr(functional, "normalize", lambda _, norm, shape, given: (torch.zeros_like(given.x), None))
    assert difference(logits(model, family), expected) > 1e-2


@EACH_FAMILY
def test_unpatching_restores_every_bit(family: str) -> None:
    model = build(family)
    expected, classes = logits(model, family), [type(module) for module in model.modules()]
    patch_model(model)
    assert unpatch_model(model) == FAMILIES[family][2]
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(logits(model, family), expected)
    assert unpatch_model(model) == 0


@EACH_FAMILY
def test_three_training_steps_are_the_same(family: str) -> None:
    """SGD, whose step is proportional to the gradient: Adam's first is its sign, and tells 1e-9 from -1e-9.

    Weights are off by at most 1e-4 of the way that they went: 4e-5 is the largest seen; or by the roundings of three
    steps, where they went a short way from 1. In each norm by itself, and in the whole model together: a gradient that
    is zero but for its roundings, as that of a key's bias, goes any way.
    """
    plain = build(family).train()
    start, patched = copy.deepcopy(plain), copy.deepcopy(plain)
    patch_model(patched)
    losses = []
    for model in (plain, patched):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(3):
            optimizer.zero_grad()
            loss = model(**batch(family, step)).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[3:] == pytest.approx(losses[:3], rel=LOGITS)
    for pick in (norms, lambda model: [model]):
        for mine, other, first in zip(*map(pick, (patched, plain, start)), strict=True):
            off, way = (
                max((p - q).abs().max().item() for p, q in zip(model.parameters(), other.parameters(), strict=True))
                for model in (mine, first)
            )
            roundings = 3 * torch.finfo(F32).eps * max(p.abs().max().item() for p in first.parameters())
            assert off < 1e-4 * way + roundings
