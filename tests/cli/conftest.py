import sys

import pytest


@pytest.fixture(autouse=True)
def _no_curves(request, monkeypatch):
    """Fits leave no curves, as where matplotlib is missing: to draw takes longer. Tests marked `draws` have them."""
    if request.node.get_closest_marker("draws") is None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
