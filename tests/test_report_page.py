"""The page of a report: every figure with its words, one look per adapter, any names and numbers of
adapters, and the numbers that its script paints."""

import base64
import json
import re
import warnings
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from adapter_geometry import geometry
from adapter_geometry.adapters import AdapterError
from adapter_geometry.report import charts, comparison, module_maps, page, summary, svg

PREFIX = "base_model.model."
KINDS = {"self_attn.q_proj": (12, 8), "self_attn.v_proj": (8, 8), "mlp.up_proj": (16, 8)}
SHAPES = {f"model.layers.{layer}.{kind}": KINDS[kind] for layer in range(3) for kind in KINDS}
LONG = "Qwen3-4B-Instruct-2507-SFT-lr5e-6-r32-seed42-step1000-deepscaler"  # 64 letters
NAMES = {
    "of 31 letters": ["qwen2.5-7b-instruct-math-sft-v2", "qwen2.5-7b-instruct-math-dpo-v2"],
    "of 44 letters": [f"Qwen3-4B-Instruct-2507-{m}-lr5e-6-r32-seed42" for m in ("SFT", "DPO")],
    "of 64 letters": [LONG, LONG.replace("SFT", "DPO")],
    "Chinese": ["数学", "代码强化学习适配器"],
    "of the book": ["grpo", "sft-low", "dpo-high"],
    "unkind": ['<script>alert(1)</script>&"', "$a$_{", "_hidden", "</script><b>x"],
}


def written(folder, seed, shapes=SHAPES, rank=3, size=0.3):
    """A PEFT folder with random factors; every adapter has its own."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for module, (d_out, d_in) in shapes.items():
        for side, shape in (("A", (rank, d_in)), ("B", (d_out, rank))):
            drawn = torch.randn(shape, generator=generator) * size
            weights[f"{PREFIX}{module}.lora_{side}.weight"] = drawn
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "base_model_name_or_path": "a/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def compared(parent, names, shapes=SHAPES, **options):
    """The report of random adapters of these names."""
    folders = {name: written(parent / str(seed), seed, shapes) for seed, name in enumerate(names)}
    return comparison.compare_adapters(folders, **options)


class Page(HTMLParser):
    """The figures of a page, each (heading, caption, its charts as trees of SVG), its cells, tags
    and attributes, and its data."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.cells, self.open = text, [], [], []
        self.feed(text)
        found = re.findall(r"<figure(?: class=\"wide\")?>\n<h3>(.*?)</figure>", text, re.DOTALL)
        self.figures = {}
        for content in found:
            heading = content.split("</h3>")[0]
            caption = re.search(r"<figcaption>(.*?)</figcaption>", content, re.DOTALL).group(1)
            trees = [
                ElementTree.fromstring(chart)
                for chart in re.findall(r'<svg class="chart".*?</svg>', content, re.DOTALL)
            ]
            self.figures[heading] = caption, trees
        data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1)
        self.data = json.loads(data)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """(report, its page) of four adapters."""
    report = compared(tmp_path_factory.mktemp("four"), ["one", "two", "three", "four"])
    return report, Page(page.render(report))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """(report, its page) of 28 adapters."""
    report = compared(tmp_path_factory.mktemp("many"), [f"run-{n:02d}" for n in range(28)])
    return report, Page(page.render(report))


def test_every_figure_is_there_with_words_for_what_it_shows(four):
    _, drawn = four
    assert list(drawn.figures) == [
        "Cosine",
        "Cosine by layer",
        "Principal angles",
        "Share in one direction",
        "Cosine without it",
        "Cosine, by module",
        "First direction, outputs, by module",
        "First direction, inputs, by module",
        "Smallest angle, outputs, by module",
        "Smallest angle, inputs, by module",
        "Captured share, second in first, by module",
        "Captured share, first in second, by module",
        "Norm by layer",
        "Spectra",
    ]
    for heading, (caption, trees) in drawn.figures.items():
        assert trees, f"{heading} has a chart"
        assert 'class="source"' in caption, f"{heading} says its formula"
        for tree in trees:
            assert tree.get("role") == "img"
            assert len(tree.get("aria-label")) > 20, f"{heading} in words"


def test_the_findings_come_first(four):
    report, drawn = four
    text = drawn.text.split("<h2>")[0]
    for sentence in summary.findings(report):
        assert f'<p class="finding">{sentence}</p>' in text


def test_the_page_asks_nothing_of_the_network(four):
    _, drawn = four
    namespace = "http://www.w3.org/2000/svg"  # a name, which nothing is loaded from
    text = drawn.text.replace(namespace, "")
    assert not re.search(r"https?:|//[\w.]+\.\w{2}|@import|url\(", text)
    tags = {tag for tag, _ in drawn.tags}
    assert not tags & {"link", "iframe", "object", "embed", "img"}
    loaded = ("src", "href", "srcset", "action", "poster")
    assert not [each for _, given in drawn.tags for each in given if each in loaded]


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_names_are_shown_as_they_were_given_and_draw_no_warning(names, tmp_path):
    report = compared(tmp_path, names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = Page(page.render(report))
    for name in names:
        assert name in drawn.cells, "in the overview"
    for heading in ("Cosine", "Norm by layer"):
        _, (tree,) = drawn.figures[heading]
        assert [each.get("data-name") for each in tree.iter() if each.get("data-name")] == names
    _, (matrix,) = drawn.figures["Cosine"]
    shown = "".join(each.text for each in matrix.iter("text"))
    assert all(name in shown for name in names), "whole, on as many lines as it takes"
    assert {tag for tag, _ in drawn.tags} & {"b", "script"} == {"script"}, "no tag of theirs"
    assert drawn.text.count("<script") == 2, "the data and the script of the page"
    assert drawn.data["adapters"] == names


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_names_leave_room_for_the_matrix_and_stay_in_the_chart(names, tmp_path):
    _, (matrix,) = Page(page.render(compared(tmp_path, names))).figures["Cosine"]
    width = float(matrix.get("viewBox").split()[2])
    assert width <= 34 * 8 + 48 * len(names) + 60, "a label is no wider than 34 letters"
    cells = "".join(path.get("d") for path in matrix.iter("path") if path.get("class")[0] == "q")
    assert set(re.findall(r"h([\d.]+)v", cells)) == {"48.0"}, "and the cells have their size"
    for text in matrix.iter("text"):
        if text.get("text-anchor") == "end":
            start = float(text.get("x")) - svg.width_of(text.text) * svg.LETTER
            assert start >= 0, f"{text.text} begins in the chart"


def test_an_adapter_has_one_colour_and_marker_in_all_figures(four, many):
    for report, drawn in (four, many):
        looks = {}
        for _, trees in drawn.figures.values():
            for tree in trees:
                for group in tree.iter("g"):
                    if name := group.get("data-name"):
                        marker = next(each for each in group if each.get("class") == "marker").get(
                            "d"
                        )
                        shape = re.match(r"M[\d.]+ [\d.]+([^M]*)", marker).group(1)
                        looks.setdefault(name, set()).add((group.get("class").split()[-1], shape))
        assert looks.keys() == set(report.compared.runs)
        assert all(len(found) == 1 for found in looks.values()), "one look each"
        assert len(set.union(*looks.values())) == len(looks), "and no two alike"
        assert looks[report.compared.runs[0]] == {svg.look_of(0)}, "by the order of the arguments"


def test_maps_hold_the_cosines_of_the_modules_and_hatch_those_within_chance(four):
    report, _ = four
    layout = module_maps.layout_of(report.compared.modules)
    assert layout.columns == ["0", "1", "2"]
    assert sorted(row.label for row in layout.rows) == ["q_proj", "up_proj", "v_proj"]
    cosine = module_maps.statistics(report)[0]
    table = (
        report.tables["cosine"]
        .query("scope == 'module' and run_a == 'one'")
        .set_index(["module", "run_b"])
    )
    for number, module in enumerate(report.compared.modules.module):
        layer, kind = module.split(".")[2], module.split(".")[-1]
        assert layout.columns[layout.column[number]] == layer
        assert layout.rows[layout.row[number]].label == kind
        for j, other in enumerate(["two", "three", "four"], start=1):
            row = table.loc[module, other]
            assert cosine.values[number, 0, j] == row.cosine
            within = abs(row.cosine) <= max(row.chance_high, row.gaussian_high)
            assert cosine.is_within_chance[number, 0, j] == within
    assert cosine.is_within_chance[:, 0, 1:].any()


def test_first_directions_of_random_updates_are_within_chance_in_19_of_20_modules(tmp_path):
    shapes = {f"model.layers.{layer}.q_proj": (24, 8) for layer in range(400)}
    report = compared(tmp_path, ["one", "two"], shapes)
    outputs = module_maps.statistics(report)[1]
    assert (outputs.name, outputs.side) == ("First direction", "outputs")
    share = outputs.is_within_chance[:, 0, 1].mean()
    assert abs(share - 0.95) < 3 * (0.95 * 0.05 / 400) ** 0.5


def test_captured_shares_of_random_updates_are_within_chance_in_19_of_20_cases(tmp_path):
    shapes = {f"model.layers.{layer}.self_attn.q_proj": (40, 24) for layer in range(100)}
    report = compared(tmp_path, ["a", "b", "c"], shapes)
    within = report.compared.alignment <= module_maps.captured_by_chance(report.compared)
    i, j = np.nonzero(~np.eye(3, dtype=bool))
    assert within[:, i, j].mean() == pytest.approx(0.95, abs=0.03)
    assert not within[:, [0, 1, 2], [0, 1, 2]].any(), "of an update itself more than of any other"


def test_adapters_of_unequal_rank_have_maps_of_subspaces_of_every_size(tmp_path):
    folders = {name: written(tmp_path / name, seed) for seed, name in enumerate(["one", "two"])}
    folders["wide"] = written(tmp_path / "wide", 2, rank=5)
    report = comparison.compare_adapters(folders)
    table = report.tables["similarity"]
    assert set(zip(table.run_a, table.run_b, strict=True)) == {("one", "wide")}
    assert len(table) == 2 * 3 * 5
    drawn = Page(page.render(report))
    _, trees = drawn.figures["Subspaces of any size"]
    assert len(trees) == 2, "outputs and inputs"
    assert "the table similarity has all sizes" in report.summary()
    assert "Share in one direction" not in drawn.figures, "of three adapters"


def test_summary_and_page_say_alike_how_many_directions_are_compared_where_ranks_differ(tmp_path):
    ranks = {"one": 2, "two": 2, "wide": 6, "wider": 6}
    folders = {
        name: written(tmp_path / name, seed, rank=rank)
        for seed, (name, rank) in enumerate(ranks.items())
    }
    report = comparison.compare_adapters(folders)
    fewest, most = geometry.top_k(2), geometry.top_k(6)
    assert fewest < most
    assert f"between the top {fewest} to {most} left singular subspaces" in report.summary()
    assert f"subspaces of the top {fewest} to {most} singular" in page.render(report)


def test_groups_have_a_matrix_sentences_and_a_place_in_the_command(tmp_path):
    names = ["a1", "a2", "b1", "b2"]
    report = compared(tmp_path, names, groups={"a": names[:2], "b": names[2:]})
    cosine, _ = geometry.stacked_cosine(report.compared)
    table = report.tables["groups"].set_index(["group_a", "group_b"])
    assert table.cosine["a", "b"] == pytest.approx(cosine[:2, 2:].mean())
    assert table.cosine["b", "b"] == pytest.approx(cosine[2, 3])
    drawn = Page(page.render(report))
    (tree,) = drawn.figures["Cosine of groups"][1]
    assert "a and b" in tree.get("aria-label")
    assert "Mean cosine between a and b, over 4 pairs: " in report.summary()
    assert report.provenance["command"].endswith("--group a=a1,a2 --group b=b1,b2")


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ({"a": ["one", "nobody"]}, "no adapter is called 'nobody', which is in the group 'a'"),
        ({"a": []}, "the group 'a' names no adapter"),
        ({"a": ["one", "one"]}, "the group 'a' names no adapter, or one twice"),
        ({"a": ["zero"]}, "every adapter of the group 'a' is zero"),
    ],
)
def test_groups_that_cannot_be_compared_are_refused(groups, says, tmp_path):
    folders = {"one": written(tmp_path / "one", 0), "zero": written(tmp_path / "zero", 1, size=0.0)}
    with pytest.raises(AdapterError, match=says):
        comparison.compare_adapters(folders, groups=groups)


def test_stacks_and_modules_without_a_layer_have_rows_of_their_own(tmp_path):
    names = [
        *(
            f"{stack}.block.{layer}.layer.0.SelfAttention.q"
            for stack in ("encoder", "decoder")
            for layer in (0, 1)
        ),
        *(f"decoder.block.{layer}.layer.1.EncDecAttention.q" for layer in (0, 1)),
        "lm_head",
    ]
    report = compared(tmp_path, ["one", "two"], dict.fromkeys(names, (8, 8)))
    layout = module_maps.layout_of(report.compared.modules)
    assert layout.columns == ["0", "1", "–"]
    assert len({*zip(layout.row, layout.column, strict=True)}) == len(names), "one cell a module"
    assert {row.heading for row in layout.rows} - {""} == {
        "encoder.block",
        "decoder.block",
        "no layer",
    }
    assert {row.label for row in layout.rows} >= {"EncDecAttention.q", "SelfAttention.q", "lm_head"}
    drawn = Page(page.render(report))
    _, trees = drawn.figures["Cosine by layer"]
    assert len(trees) == 2, "a panel for each stack"


def test_the_script_is_given_the_numbers_of_every_pair(four):
    report, drawn = four
    data = drawn.data
    stored = np.frombuffer(base64.b64decode(data["values"]), "<i2").astype(int)
    stored = stored.reshape(len(data["statistics"]), len(data["pairs"]), len(data["modules"]))
    assert len(data["pairs"]) == 6
    for number, statistic in enumerate(module_maps.statistics(report)):
        about = data["statistics"][number]
        for pair, (i, j) in enumerate(data["pairs"]):
            values = (stored[number, pair] >> 1) / about["parts"]
            np.testing.assert_allclose(
                values, statistic.values[:, i, j], atol=0.5 / about["parts"] + 1e-9
            )
            np.testing.assert_array_equal(
                stored[number, pair] & 1, statistic.is_within_chance[:, i, j]
            )
            mirrored = module_maps.statistics(report)[about["mirrored"]]
            np.testing.assert_array_equal(mirrored.values[:, j, i], statistic.values[:, i, j])


def test_28_adapters_have_an_ordered_matrix_with_a_tree_and_rows_instead_of_bands(many):
    _, drawn = many
    assert len(drawn.text) < 5e6
    _, (matrix,) = drawn.figures["Cosine"]
    assert sum(path.get("class") == "branch" for path in matrix.iter("path")) == 27
    assert not [
        tree
        for _, trees in drawn.figures.values()
        for tree in trees
        if tree.findall(".//path[@class='chance']")
    ]
    _, (rows,) = drawn.figures["Norm by layer"]
    assert len({each.get("data-name") for each in rows.iter() if each.get("data-name")}) == 28
    for _, trees in drawn.figures.values():
        for tree in trees:
            width, height = map(float, tree.get("viewBox").split()[2:])
            for text in tree.iter("text"):
                if text.get("x"):
                    assert 0 <= float(text.get("x")) <= width
                    assert 0 <= float(text.get("y")) <= height, "no name is out of the picture"
    _, maps = drawn.figures["Cosine, by module"]
    assert len(maps) == 8, "maps of the nearest"
    assert "The nearest of each" in drawn.text


def test_more_numbers_than_a_page_holds_are_those_of_the_reference(many, monkeypatch):
    report, _ = many
    monkeypatch.setattr(module_maps, "_BYTES", 1e4)
    layout = module_maps.layout_of(report.compared.modules)
    explorer = module_maps.explorer(report, layout, module_maps.statistics(report))
    assert explorer.data["pairs"] == [[0, other] for other in range(1, 28)]
    assert "run-00" in explorer.caption


def test_updates_of_zero_leave_gaps_and_no_warning(tmp_path):
    folders = {name: written(tmp_path / name, seed) for seed, name in enumerate("ab")}
    folders |= {name: written(tmp_path / name, 9, size=0.0) for name in ("zero", "null")}
    for chosen in (["a", "b", "zero"], ["zero", "a"], ["zero", "null"]):
        report = comparison.compare_adapters({name: folders[name] for name in chosen})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            text = page.render(report)
        assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_adapters_without_layers_have_no_figures_over_layers(tmp_path):
    report = compared(tmp_path, ["one", "two"], {"lm_head": (8, 8), "pooler.dense": (8, 8)})
    drawn = Page(page.render(report))
    assert "Cosine by layer" not in drawn.figures
    assert "Cosine, by module" in drawn.figures


def test_lines_are_drawn_where_their_numbers_are():
    x, y = np.array([0.0, 1, 2]), np.array([1.0, np.nan, 3])
    line = svg.Line("run", svg.look_of(0), x, y)
    chart = ElementTree.fromstring(svg.lines([line], None, "layer", "norm", "a line"))
    stroke = chart.find(".//path[@class='stroke']").get("d")
    assert stroke.count("M") == 2, "a gap parts the line"
    (x0, y0), (x1, y1) = (map(float, part.split()) for part in stroke.split("M")[1:])
    labels = {
        (text.text, text.get("text-anchor")): float(text.get("x"))
        if text.get("text-anchor") == "middle"
        else float(text.get("y")) - 4
        for text in chart.iter("text")
        if text.get("x")
    }
    assert (x0, x1) == pytest.approx((labels["0", "middle"], labels["2", "middle"]), abs=0.1)
    assert (y0, y1) == pytest.approx((labels["1.0", "end"], labels["3.0", "end"]), abs=0.1)


def test_relative_norms_of_a_layer_count_modules_whose_update_is_zero(tmp_path):
    folders = {name: written(tmp_path / name, seed) for seed, name in enumerate("ab")}
    report = comparison.compare_adapters(folders)
    # W0 of norm 2 in every module; b is zero in one of the three of the first layer
    compared_, modules = report.compared, report.compared.modules
    first = int(np.flatnonzero(modules.layer == 0)[0])
    compared_.inner[first, 1, :] = compared_.inner[first, :, 1] = 0
    report.tables["updates"] = geometry.updates_table(compared_, dict.fromkeys(modules.module, 2.0))
    norms = charts._norms(report).set_index(["run", "layer"])
    row = norms.loc["b", 0]
    squares = compared_.inner[(modules.layer == 0).to_numpy(dtype=bool), 1, 1].sum()
    assert row.relative_norm == pytest.approx(np.sqrt(squares / (3 * 4)))


def test_intruders_stand_beside_those_of_a_copy_with_turned_outputs(tmp_path):
    report = compared(tmp_path, ["one", "two"])
    modules = report.compared.modules[["module", "stack", "layer", "projection"]]
    report.tables["intruders"] = pd.concat(
        [
            modules.assign(
                run=run, count=2, count_by_chance=4, spectral_shift=0.1, shift_by_chance=0.1
            )
            for run in ("two", "one")
        ]
    )
    drawn = Page(page.render(report))
    caption, (tree,) = drawn.figures["Intruder dimensions"]
    assert "Dashed: a copy of each with turned outputs" in caption
    heights = {
        (group.get("data-name"), "null" in group.get("class")): float(
            group.find("path[@class='stroke']").get("d").split("L")[-1].split()[1]
        )
        for group in tree.iter("g")
    }
    assert len(heights) == 4, "two lines for each adapter"
    ticks = {
        float(text.text): float(text.get("y")) - 4
        for text in tree.iter("text")
        if text.get("text-anchor") == "end"
    }
    for (_, is_null), height in heights.items():
        assert height == pytest.approx(ticks[4.0 if is_null else 2.0], abs=0.1)
    legend = drawn.text.split("<h3>Intruder dimensions</h3>")[1].split("</ul>")[0]
    assert re.findall(r"</svg> (\w+)</li>", legend) == ["one", "two"], "in the user's order"


def test_ticks_are_round_and_lie_around_the_values():
    assert svg.ticks(np.array([3.0, 3.0]), 5, is_whole=True) == [3.0]
    assert svg.ticks(np.array([np.nan]), 5) == [0.0, 1.0]
    numbers = svg.ticks(np.array([0.013, 0.027]), 5)
    assert numbers[0] <= 0.013
    assert numbers[-1] >= 0.027
    assert pd.Series(numbers).diff().dropna().round(12).nunique() == 1


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("selenium", reason="`make test-browser` installs what these tests need")
    import chromium

    started = chromium.start(
        "--host-resolver-rules=MAP * ~NOTFOUND", **{"goog:loggingPrefs": {"browser": "ALL"}}
    )
    yield started
    started.quit()


@pytest.fixture(scope="module")
def shown(four, tmp_path_factory):
    """The address of the page of four adapters."""
    path = tmp_path_factory.mktemp("shown") / "report.html"
    path.write_text(four[1].text, encoding="utf-8")
    return path.as_uri()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1300, 420])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(browser, shown, theme, width):
    axe = pytest.importorskip("axe_core_python")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(shown)
    browser.execute_script((Path(axe.__file__).parent / "axe.min.js").read_text())
    violations = browser.execute_async_script("""
        const [done] = arguments;
        axe.run(document, {resultTypes: ["violations"]}).then(({violations}) =>
          done(violations.map(({id, nodes}) => [id, nodes[0].html.slice(0, 200)])))""")
    assert violations == []
    assert browser.get_log("browser") == [], "and the console is silent"
    scrolled, seen = browser.execute_script(
        "const {scrollWidth, clientWidth} = document.documentElement;"
        "return [scrollWidth, clientWidth]"
    )
    assert scrolled <= seen
    if width == 1300:
        cut = browser.execute_script("""
            return [...document.querySelectorAll(".scrolls")]
              .filter(each => each.scrollWidth > each.clientWidth + 1)
              .map(each => each.getAttribute("aria-label"))""")
        assert cut == [], "on a large screen nothing is out of sight"


@pytest.mark.browser
def test_the_script_paints_what_python_paints(browser, shown, four):
    report, _ = four
    layout = module_maps.layout_of(report.compared.modules)
    names = report.compared.runs
    browser.get(shown)
    for statistic in module_maps.statistics(report):
        for i, j in ((0, 2), (3, 1)):
            painted = browser.execute_script(
                """
                const [first, second, name, side] = arguments;
                const choose = (part, value) => {
                  const select = document.getElementById(part);
                  select.value = value;
                  select.dispatchEvent(new Event("change"));
                };
                choose("first", first);
                choose("second", second);
                choose("statistic", name);
                choose("side", side);
                const paths = [...document.querySelectorAll("#map .cells path")];
                const caption = document.getElementById("caption").textContent;
                return [paths.map(each => [each.getAttribute("class"), each.getAttribute("d")]),
                        caption]""",
                i,
                j,
                statistic.name,
                statistic.side,
            )
            expected = ElementTree.fromstring(module_maps.chart(layout, statistic, i, j, ""))
            paths = {
                path.get("class"): path.get("d") for path in expected.find("g[@class='cells']")
            }
            found = {name: boxes(d) for name, d in painted[0] if name != "chosen"}
            assert found == {name: boxes(d) for name, d in paths.items()}
            assert names[i] in painted[1]
            assert names[j] in painted[1]


def boxes(path):
    """The corners of the parts of a path, in whole pixels."""
    return sorted(
        tuple(round(float(number)) for number in re.findall(r"-?[\d.]+", part)[:2])
        for part in path.split("M")[1:]
    )


@pytest.mark.browser
def test_without_javascript_every_figure_is_shown(browser, shown, four):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(shown)
        charts_shown = browser.find_elements("css selector", ".figures svg.chart")
        assert len(charts_shown) == sum(len(trees) for _, trees in four[1].figures.values())
        assert all(chart.size["height"] > 60 for chart in charts_shown)
        assert not browser.find_element("id", "explorer").is_displayed(), "what would not answer"
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
