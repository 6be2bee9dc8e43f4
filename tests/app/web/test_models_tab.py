"""The table of models."""

import pytest

pytest.importorskip("gradio")

from unipercept.app.web.models_tab import _table


def card(name: str, millions: float) -> dict[str, object]:
    return {"name": name, "millions": millions, "dim": 320, "is_untrained": True, "head_modality": "", "n_classes": None,
            "task": "", "trained_on": "nothing", "metric": ""}  # fmt: skip


def test_a_column_that_says_the_same_of_all_models_is_left_out():
    html = _table([card("small", 4.4), card("large", 27.6)])
    assert html.count("<th ") == 2
    assert "4.4 M" in html
    assert "320" not in html
    assert "320" in _table([card("small", 4.4)])
