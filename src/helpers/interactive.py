"""Interactive figures that need no network and no kernel: HTML, inline SVG and a little script, their data inside.

After `figures` in the flow of data; shows what other modules computed. The same block works on a page of the book, from disk, and in a
live notebook. All text reaches the page through `textContent` or escaped, and each block is an opaque card, so that it reads in both themes.
"""

import base64
import html
import io
import json

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from PIL import Image

from helpers import figures

_HEADINGS = {"rollout": "loss of rollouts, nats a token", "boxed answer": "loss of the bare answer, nats a token", "accuracy": "share of problems solved"}

_STYLE = """
.explorer { background: #fff; color: #1a1a1a; color-scheme: light; border: 1px solid #8a8a8a; border-radius: .6rem; padding: 1rem;
  font-size: .95rem; line-height: 1.45; max-width: 100%; box-sizing: border-box; }
.explorer * { box-sizing: border-box; color: inherit; }
.explorer .controls { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: .4rem .8rem; align-items: center; }
.explorer .controls label { font-weight: 600; margin: 0; }
.explorer select { font: inherit; min-height: 2.2rem; max-width: 100%; background: #fff; border: 1px solid #6b6b6b; border-radius: .3rem; }
.explorer input[type=range] { width: 100%; height: 2.2rem; margin: 0; accent-color: #0072B2; }
.explorer :is(select, input, summary, .scroll):focus-visible { outline: 3px solid #0072B2; outline-offset: 2px; }
.explorer p { margin: .5rem 0; }
.explorer .charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(200px, 100%), 1fr)); gap: .8rem; }
.explorer .charts > div { display: flex; flex-direction: column; justify-content: space-between; }
.explorer .charts p { margin: 0 0 .2rem; min-height: 2.6em; }
.explorer .charts b { font-variant-numeric: tabular-nums; white-space: nowrap; }
.explorer svg { display: block; width: 100%; height: auto; }
.explorer .example { background: #f2f2f2; border-radius: .4rem; padding: .6rem .8rem; margin-top: .8rem; overflow-wrap: anywhere; }
.explorer .written { white-space: pre-wrap; min-height: 3em; }
.explorer details { margin-top: .8rem; }
.explorer .scroll { max-height: 20rem; overflow: auto; margin-top: .5rem; }
.explorer table { border-collapse: collapse; width: auto; margin: 0; font-size: .9rem; font-variant-numeric: tabular-nums; background: #fff; }
.explorer caption { caption-side: top; text-align: left; }
.explorer :is(th, td) { border: 0; border-bottom: 1px solid #ccc; padding: .2rem .6rem; text-align: right; white-space: nowrap; background: #fff; }
.explorer th[scope=row] { text-align: left; font-weight: 400; }
.explorer img { display: block; max-width: 100%; height: auto; margin: .6rem auto 0; }
.explorer .tokens { line-height: 1.9; overflow-wrap: anywhere; }
.explorer .tokens span { border-radius: .2rem; padding: .1rem .15rem; margin-right: .1rem; white-space: pre-wrap; }
"""

# Every script begins with its card and the card's data, and runs once, however often a page is drawn.
_BEGIN = """
(function () {
  const root = document.getElementById(NAME);
  if (!root || root.dataset.ready) return;
  root.dataset.ready = "yes";
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const part = name => root.querySelector("[data-part='" + name + "']");
  const say = (element, text) => { if (element.textContent !== text) element.textContent = text; };
"""

_PATHS = """
  const select = root.querySelector("select"), slider = root.querySelector("input");
  const W = 240, H = 130, L = 40, R = 12, T = 8, B = 24;
  const x = t => L + t * (W - L - R);
  const share = t => Math.round(100 * t) + "%";
  const shown = (metric, value) => metric === "accuracy" ? (100 * value).toFixed(1) + "%" : value.toFixed(3);
  const nearest = (ts, t) => ts.reduce((best, value, i) => Math.abs(value - t) < Math.abs(ts[best] - t) - 1e-9 ? i : best, 0);

  function add(parent, kind, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    parent.appendChild(made);
    return made;
  }

  function scale(metric) {
    const [low, high] = data.ranges[metric], room = 0.06 * (high - low) || 0.5;
    return value => T + (H - T - B) * (high + room - value) / (high - low + 2 * room);
  }

  function chart(path, metric) {
    const svg = part("svg " + metric), y = scale(metric), curve = path.curves[metric], last = curve.t.length - 1;
    svg.replaceChildren();
    const label = { "font-size": 11.5, fill: "#1a1a1a" };
    for (const tick of data.ticks[metric]) {
      add(svg, "line", { x1: L, x2: W - R, y1: y(tick), y2: y(tick), stroke: "#d5d5d5" });
      add(svg, "text", { ...label, x: L - 4, y: y(tick) + 4, "text-anchor": "end" }, metric === "accuracy" ? share(tick) : String(tick));
    }
    add(svg, "text", { ...label, x: x(0), y: H - 6 }, path.from);
    add(svg, "text", { ...label, x: x(1), y: H - 6, "text-anchor": "end" }, path.to);
    const points = (values, order) => order.map(i => x(curve.t[i]).toFixed(1) + "," + y(values[i]).toFixed(1)).join(" ");
    const order = curve.t.map((_, i) => i);
    add(svg, "polygon", { points: points(curve.low, order) + " " + points(curve.high, order.slice().reverse()), fill: "#0072B2", opacity: 0.18 });
    add(svg, "line", { x1: x(0), x2: x(1), y1: y(curve.value[0]), y2: y(curve.value[last]), stroke: "#6b6b6b", "stroke-dasharray": "3 3" });
    add(svg, "polyline", { points: points(curve.value, order), fill: "none", stroke: "#0072B2", "stroke-width": 2 });
    if (metric === "accuracy") for (const i of order) add(svg, "circle", { cx: x(curve.t[i]), cy: y(curve.value[i]), r: 2.5, fill: "#0072B2" });
    add(svg, "line", { "data-part": "cursor " + metric, y1: T, y2: H - B, stroke: "#1a1a1a" });
    add(svg, "circle", { "data-part": "dot " + metric, r: 5, fill: "#fff", stroke: "#1a1a1a", "stroke-width": 2 });
  }

  function move() {
    const path = data.paths[select.selectedIndex], t = path.curves[data.metrics[0]].t[+slider.value];
    const place = "t = " + t.toFixed(2) + ": " + (1 - t).toFixed(2) + " × the update of " + path.from
      + (path.is_to_base ? "" : " + " + t.toFixed(2) + " × the update of " + path.to);
    const read = [];
    for (const metric of data.metrics) {
      const curve = path.curves[metric], i = nearest(curve.t, t), y = scale(metric);
      for (const side of ["x1", "x2"]) part("cursor " + metric).setAttribute(side, x(t));
      part("dot " + metric).setAttribute("cx", x(curve.t[i]));
      part("dot " + metric).setAttribute("cy", y(curve.value[i]));
      const value = shown(metric, curve.value[i]), interval = shown(metric, curve.low[i]) + " to " + shown(metric, curve.high[i]);
      say(part("value " + metric), value);
      say(part("interval " + metric), interval + (metric === "accuracy" ? ", at t = " + curve.t[i].toFixed(2) : ""));
      read.push(data.headings[metric] + " " + value);
    }
    say(part("place"), place);
    slider.setAttribute("aria-valuetext", place + ": " + read.join("; "));
    const example = path.example, i = nearest(example.t, t);
    say(part("question"), example.question);
    say(part("answer"), example.answer);
    say(part("verdict"), "At t = " + example.t[i].toFixed(2) + " the model writes, " + (example.correct[i] ? "right" : "wrong") + ":");
    say(part("written"), example.completion[i].trim() || "(nothing)");
  }

  function begin() {
    const path = data.paths[select.selectedIndex], last = path.curves[data.metrics[0]].t.length - 1;
    slider.max = last;
    slider.value = Math.min(+slider.value, last);
    for (const metric of data.metrics) chart(path, metric);
    move();
  }

  for (const path of data.paths) {
    const option = document.createElement("option");
    option.textContent = path.from + " to " + path.to;
    select.appendChild(option);
  }
  select.addEventListener("change", begin);
  slider.addEventListener("input", move);
  begin();
  part("live").hidden = false;
})();
"""

_FRAMES = """
  const control = root.querySelector("select, input");
  function show() {
    const frame = data[control.tagName === "SELECT" ? control.selectedIndex : +control.value];
    part("image").src = frame.image;
    part("image").alt = frame.alt;
    say(part("shown"), frame.label);
    if (control.type === "range") control.setAttribute("aria-valuetext", frame.label);
  }
  control.addEventListener("input", show);
  show();
  part("live").hidden = false;
})();
"""

_ROLLOUTS = """
  const [problem, method] = root.querySelectorAll("select");
  function add(parent, kind, text, attributes) {
    const made = document.createElement(kind);
    for (const key in attributes || {}) made.setAttribute(key, attributes[key]);
    made.textContent = text;
    parent.appendChild(made);
    return made;
  }
  function show() {
    const chosen = data.problems[problem.selectedIndex], name = data.methods[method.selectedIndex], place = part("completions");
    say(part("question"), chosen.question);
    say(part("answer"), chosen.answer);
    const used = chosen.completions.map(each => each.weights[name]).filter(Boolean);
    const largest = Math.max(1e-9, ...used.flat().map(Math.abs));
    place.replaceChildren();
    chosen.completions.forEach((each, number) => {
      const weights = each.weights[name], told = weights
        ? "weights from " + Math.min(...weights).toFixed(2) + " to " + Math.max(...weights).toFixed(2) : "not used by this objective";
      add(place, "p", (number + 1) + ". " + (each.reward > 0 ? "Right" : "Wrong") + ", reward " + each.reward + "; " + told + ".").style.fontWeight = "600";
      const line = add(place, "p", "", { class: "tokens" });
      each.tokens.forEach((text, i) => {
        const token = add(line, "span", text);
        if (!weights) return;
        const strength = (0.6 * Math.abs(weights[i]) / largest).toFixed(3);
        token.style.backgroundColor = (weights[i] < 0 ? "rgba(224,130,20," : "rgba(128,115,172,") + strength + ")";
        token.title = weights[i].toFixed(3);
      });
    });
  }
  data.problems.forEach((each, number) => add(problem, "option", (number + 1) + ": " + each.question.slice(0, 60) + "…"));
  data.methods.forEach((each, number) => add(method, "option", data.labels[number]));
  problem.addEventListener("change", show);
  method.addEventListener("change", show);
  show();
  part("live").hidden = false;
})();
"""


def _card(name, about, needs, data, body, script):
    """A card with its data, what stands in it, and its script; `needs` is what a reader without scripts is told."""
    # "<" is written as an escape, so that no text of a model can end the script element.
    embedded = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    quoted = json.dumps(name).replace("<", "\\u003c")
    identity, about = html.escape(name, quote=True), html.escape(about, quote=True)
    return HTML(f'<div class="explorer tex2jax_ignore mathjax_ignore" id="{identity}" role="group" aria-label="{about}">'
                f'<style>{_STYLE}</style><script type="application/json">{embedded}</script><noscript><p>{needs}</p></noscript>{body}</div>'
                f'<script>{_BEGIN.replace("NAME", quoted)}{script}</script>')


def frames(pictures, label, table, name, is_ordered=True):
    """A card that shows one of several pictures of one kind, chosen by a slider or, if not `is_ordered`, from a list. An IPython HTML object.

    pictures: (label, matplotlib figure, alt text) of each, best from a generator, since a figure is closed as soon as it is read. label: what is chosen.
    table: the numbers behind all of them, folded out below (DataFrame or list of rows). `name` must be unique on the page.
    """
    shown = [{"label": text, "alt": alt, "image": _png(figure)} for text, figure, alt in pictures]
    identity = html.escape(name, quote=True)
    options = "".join(f"<option>{html.escape(frame['label'])}</option>" for frame in shown)
    control = (f'<input id="{identity}-which" type="range" min="0" max="{len(shown) - 1}" step="1" value="0">' if is_ordered
               else f'<select id="{identity}-which">{options}</select>')
    body = (f'<div data-part="live" hidden><div class="controls"><label for="{identity}-which">{html.escape(label)}</label>{control}</div>'
            f'<p data-part="shown" aria-live="polite"></p></div>'
            f'<img data-part="image" src="{shown[0]["image"]}" alt="{html.escape(shown[0]["alt"], quote=True)}">{_folded(table, f"Numbers by {label}")}')
    needs = f"Only the first picture ({html.escape(shown[0]['label'])}) can be seen without JavaScript; the table below holds all numbers."
    return _card(name, f"Pictures by {label}", needs, shown, body, _FRAMES)


def rollout_browser(problems, methods, name):
    """A card with rollouts token by token, coloured by the weight that an objective gives to each token. An IPython HTML object.

    problems: list of {"question", "answer", "completions": [{"reward", "tokens": [text], "weights": {method: [number a token]}}]}; a method that does
    not use a completion has no entry. methods: names of the objectives, in the order of the list. `name` must be unique on the page.
    """
    identity = html.escape(name, quote=True)
    problems = [{**each, "completions": [{**written, "weights": {method: np.round(values, 4).tolist() for method, values in written["weights"].items()}}
                                         for written in each["completions"]]} for each in problems]
    rows = []
    for number, each in enumerate(problems, 1):
        for place, written in enumerate(each["completions"], 1):
            sums = {method: f"{np.sum(values):+.2f}" for method, values in written["weights"].items()}
            rows.append({"problem": number, "rollout": place, "reward": f"{written['reward']:g}",
                         **{figures.LABELS[method]: sums.get(method, "not used") for method in methods}})
    body = (f'<div data-part="live" hidden><div class="controls"><label for="{identity}-problem">problem</label><select id="{identity}-problem"></select>'
            f'<label for="{identity}-method">objective</label><select id="{identity}-method"></select></div>'
            '<div class="example"><p><b>Problem:</b> <span data-part="question"></span> <b>Answer:</b> <span data-part="answer"></span>.</p>'
            '<div data-part="completions"></div></div><p><small>Purple raises the probability of a token, orange lowers it; the stronger the colour, '
            'the larger the weight.</small></p></div>'
            f'{_folded(rows, "Sum of the weights of each rollout")}')
    data = {"problems": problems, "methods": methods, "labels": [figures.LABELS[method] for method in methods]}
    needs = "Colouring tokens needs JavaScript; the table below holds the sums of the weights."
    return _card(name, "Browser of rollouts and their weights", needs, data, body, _ROLLOUTS)


def _png(figure):
    """A figure as the address of an image that lies in the address itself, in few colours, so that a page can hold dozens; the figure is closed."""
    drawn, written = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(96).save(written, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


def _folded(table, about):
    """A table, folded, that scrolls within itself: a list of rows as dicts, or a DataFrame; the first column heads its row."""
    rows = table if isinstance(table, list) else table.to_dict("records")
    head = "".join(f'<th scope="col">{html.escape(str(column))}</th>' for column in rows[0])

    def cell(value):
        return html.escape(f"{value:.3f}" if isinstance(value, float) else str(value))
    lines = ""
    for row in rows:
        first, *others = (cell(value) for value in row.values())
        lines += f'<tr><th scope="row">{first}</th>{"".join(f"<td>{value}</td>" for value in others)}</tr>'
    about = html.escape(about, quote=True)
    return (f'<details><summary>The numbers as a table</summary><div class="scroll" tabindex="0" role="region" aria-label="{about}"><table>'
            f'<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div></details>')


def path_explorer(connectivity, examples, name="path-explorer"):
    """A card in which t moves along a path: both losses, the accuracy, and what the model writes to one problem. An IPython HTML object.

    connectivity: rows of the `connectivity` table of the paths to show (run_a, run_b, t, metric, value, low, high), t from 0 to 1; a path
    needs all three metrics. examples: one row a (path, t), with columns run_a, run_b, t, question, answer, completion, correct; one
    problem a path. `name` must be unique on the page.

    Raises ValueError for a path that lacks a metric or an example.
    """
    metrics = list(_HEADINGS)
    shown = connectivity[connectivity.metric.isin(metrics) & connectivity.t.between(0, 1)]
    paths = [_path(ends, group, examples, metrics) for ends, group in shown.groupby(["run_a", "run_b"], sort=False)]
    ranges = {metric: [float(group.low.min()), float(group.high.max())] for metric, group in shown.groupby("metric")}
    data = {"metrics": metrics, "headings": _HEADINGS, "ranges": ranges, "ticks": {metric: _ticks(*ranges[metric]) for metric in metrics}, "paths": paths}
    charts = "".join(
        f'<div><p>{_HEADINGS[metric]}: <b data-part="value {metric}"></b><br><small>95% interval <span data-part="interval {metric}"></span></small></p>'
        f'<svg data-part="svg {metric}" viewBox="0 0 240 130" aria-hidden="true"></svg></div>' for metric in metrics)
    identity = html.escape(name, quote=True)
    body = (f'<div data-part="live" hidden><div class="controls"><label for="{identity}-path">path</label><select id="{identity}-path"></select>'
            f'<label for="{identity}-t">position t</label><input id="{identity}-t" type="range" min="0" max="1" step="1" value="0"></div>'
            f'<p data-part="place"></p><div class="charts">{charts}</div>'
            f'<div class="example"><p><b>One of the problems:</b> <span data-part="question"></span> <b>Its answer:</b> <span data-part="answer"></span>.</p>'
            f'<div aria-live="polite"><p><b data-part="verdict"></b></p><p class="written" data-part="written"></p></div></div></div>'
            f'{_folded(_rows(paths, metrics), "Table of the paths")}')
    return _card(name, "Explorer of paths between two updates", "Moving along a path needs JavaScript; the table below holds the numbers.", data, body, _PATHS)


def _path(ends, group, examples, metrics):
    """What the script needs of one path, as plain lists; numbers rounded to what a pixel and a readout can show."""
    first, second = ends
    curves = {}
    for metric in metrics:
        part = group[group.metric == metric].sort_values("t")
        if part.empty:
            raise ValueError(f"the path from {first} to {second} has no rows of metric {metric!r}; the explorer shows {', '.join(metrics)}")
        curves[metric] = {"t": [round(float(t), 4) for t in part.t], **{side: [round(float(v), 4) for v in part[side]] for side in ("value", "low", "high")}}
    told = examples[(examples.run_a == first) & (examples.run_b == second)].sort_values("t")
    if told.empty:
        raise ValueError(f"the path from {first} to {second} has no example: add rows to `examples`")
    example = {"question": str(told.question.iloc[0]), "answer": str(told.answer.iloc[0]), "t": [round(float(t), 4) for t in told.t],
               "completion": [str(text) for text in told.completion], "correct": [bool(right) for right in told.correct]}
    return {"from": figures.LABELS[first], "to": figures.LABELS[second], "is_to_base": second == "base", "curves": curves, "example": example}


def _ticks(low, high):
    """Three to six round numbers from `low` to `high`."""
    spread = max(high - low, 1e-6)
    step = next(size * 10.0 ** power for power in range(-8, 8) for size in (1, 2, 2.5, 5) if spread / (size * 10.0 ** power) <= 5)
    first = int(-(-low // step))
    return [round(k * step, 9) for k in range(first, int(high // step) + 1)]


def _rows(paths, metrics):
    """The same numbers at the points where problems were answered, for readers without a script or a pointer."""
    rows = []
    for path in paths:
        for place, t in enumerate(path["example"]["t"]):
            row = {"path": f"{path['from']} to {path['to']}", "t": f"{t:.2f}"}
            for metric in metrics:
                curve = path["curves"][metric]
                nearest = min(range(len(curve["t"])), key=lambda i, curve=curve, t=t: abs(curve["t"][i] - t))
                row[_HEADINGS[metric]] = f"{curve['value'][nearest]:.3f}"
            rows.append({**row, "the problem shown": "right" if path["example"]["correct"][place] else "wrong"})
    return rows
