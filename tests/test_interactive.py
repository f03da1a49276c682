"""Interactive figures: what a page without network, kernel or trust in a model's text needs of them."""

import json
import re

import pandas as pd
import pytest

from helpers import interactive

METRICS = ("rollout", "boxed answer", "accuracy")


def block(text="</script><b>x</b>", name="here", metrics=METRICS):
    curves = pd.DataFrame([{"run_a": "sft", "run_b": "base", "t": t, "metric": metric, "value": 0.5 + t / 10, "low": 0.4, "high": 0.7}
                           for metric in metrics for t in (-0.5, 0.0, 0.5, 1.0)])
    examples = pd.DataFrame([{"run_a": "sft", "run_b": "base", "t": t, "question": text, "answer": "4", "completion": text, "correct": t > 0}
                             for t in (0.0, 1.0)])
    return interactive.path_explorer(curves, examples, name).data


def data(page):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S).group(1))


def test_text_of_a_model_cannot_leave_its_element():
    page = block()
    assert page.count("</script>") == 2, "one for the data, one for the code"
    assert data(page)["paths"][0]["example"]["completion"][0] == "</script><b>x</b>", "and it comes back unchanged"
    assert "innerHTML" not in page


def test_shows_the_path_between_its_ends_only():
    assert data(block())["paths"][0]["curves"]["rollout"]["t"] == [0.0, 0.5, 1.0]


def test_needs_no_network():
    assert not re.findall(r"(?:src|href)=|@import|url\(", block())


def test_two_blocks_share_no_id():
    first, second = (set(re.findall(r' id="([^"]+)"', block(name=name))) for name in ("a", "b"))
    assert len(first) == 3
    assert not first & second


def test_same_input_same_page():
    assert block() == block()


def test_missing_metric_is_named():
    with pytest.raises(ValueError, match="accuracy"):
        block(metrics=METRICS[:2])
