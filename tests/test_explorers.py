"""Explorers: what a page without network, kernel or trust in a model's text needs of them."""

import json
import re
import shutil
import subprocess

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from helpers.book import explorers

METRICS = ("rollout", "boxed answer", "accuracy")
TEMPLATES = {path.name: path for path in sorted(explorers._TEMPLATES.iterdir())}
SCRIPTS = [name for name in TEMPLATES if name.endswith(".js")]


def block(text="</script><b>x</b>", name="here", metrics=METRICS):
    path = {"run_a": "sft", "run_b": "base"}
    curves = pd.DataFrame(
        [
            {**path, "t": t, "metric": metric, "value": 0.5 + t / 10, "low": 0.4, "high": 0.7}
            for metric in metrics
            for t in (-0.5, 0.0, 0.5, 1.0)
        ]
    )
    problem = {"question": text, "answer": "4", "completion": text}
    examples = pd.DataFrame([{**path, **problem, "t": t, "correct": t > 0} for t in (0.0, 1.0)])
    return explorers.path_explorer(curves, examples, name).data


def data(page):
    return json.loads(
        re.search(r'<script type="application/json">(.*?)</script>', page, re.S).group(1)
    )


def test_text_of_a_model_cannot_leave_its_element():
    page = block()
    assert page.count("</script>") == 2, "one for the data, one for the code"
    assert data(page)["paths"][0]["example"]["completion"][0] == "</script><b>x</b>", (
        "and it comes back unchanged"
    )
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


def picture():
    figure, axis = plt.subplots(figsize=(2, 1))
    axis.plot([0, 1])
    return figure


def test_a_chosen_picture_has_its_own_alt_text_and_the_first_one_needs_no_script():
    table = pd.DataFrame({"layer": ["0", "1"], "cosine": [0.25, 0.5]})
    first = "layer <0>", picture(), "a line, first"
    second = "layer 1", picture(), 'a "line", second'
    page = explorers.frames([first, second], "layer", table, "here").data
    assert [frame["alt"] for frame in data(page)] == ["a line, first", 'a "line", second']
    assert page.count('<img data-part="image" src="data:image/png;base64,') == 1, (
        "seen before any script runs"
    )
    assert "layer &lt;0&gt;" in page, "labels are escaped"
    assert "0.500" in page, "the numbers stand in a table"
    assert 'type="range" min="0" max="1"' in page, (
        "keyboard and touch come with the browser's own control"
    )
    assert not plt.get_fignums(), "nothing is drawn twice"


def test_pictures_without_an_order_are_chosen_from_a_list():
    pictures = [("a", picture(), "one"), ("b", picture(), "two")]
    page = explorers.frames(pictures, "part", [{"x": 1}], "here", is_ordered=False).data
    assert page.count("<option>") == 2
    assert 'type="range"' not in page


def test_rollouts_are_shown_with_the_weights_of_each_objective_and_cannot_leave_their_element():
    both = {"sft": [1.0, 1.0], "rft": [1.0, 1.0]}
    completions = [
        {"reward": 1.0, "tokens": ["</script>", "4"], "weights": both},
        {"reward": 0.0, "tokens": ["5"], "weights": {"sft": [1.0]}},
    ]
    problem = {"question": "2 + 2?", "answer": "4", "completions": completions}
    page = explorers.rollout_browser([problem], ["sft", "rft"], "here").data
    assert page.count("</script>") == 2
    assert data(page)["problems"][0]["completions"][0]["tokens"][0] == "</script>"
    for sums in ("<td>+2.00</td><td>+2.00</td>", "<td>+1.00</td><td>not used</td>"):
        assert sums in page, "the sums, without colour"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_read_by_a_browser(name):
    node = shutil.which("node")
    if not node:
        pytest.skip("no node is installed")
    checked = subprocess.run([node, "--check", TEMPLATES[name]], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_no_script_or_style_sheet_ends_its_own_element():
    assert len(SCRIPTS) == 4
    for name in SCRIPTS:
        assert not re.search(r"</script|<!--", TEMPLATES[name].read_text(), re.IGNORECASE), name
    assert "</style" not in TEMPLATES["explorer.css"].read_text()
