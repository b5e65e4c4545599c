"""Both products of linear layers, whichever of them this CPU would take."""

import pytest

from plr.models.layers import linear


@pytest.fixture(params=["PyTorch", "oneDNN"])
def products(request, monkeypatch):
    onednn = linear._onednn()
    if request.param == "oneDNN" and onednn is None:
        pytest.skip("this build of PyTorch has no oneDNN product")
    monkeypatch.setattr(linear, "_ONEDNN", onednn if request.param == "oneDNN" else None)
    return request.param
