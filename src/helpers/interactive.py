"""Interactive figures that need no network and no kernel: HTML, inline SVG and a little script, their data inside.

After `figures` in the flow of data; shows what other modules computed. The same block works on a page of the book, from disk, and in a
live notebook. All text reaches the page through `textContent` or escaped, and each block is an opaque card, so that it reads in both themes.
"""

import html
import json

from IPython.display import HTML

from helpers import figures

_HEADINGS = {"rollout": "loss of rollouts, nats a token", "boxed answer": "loss of the bare answer, nats a token", "accuracy": "share of problems solved"}

_STYLE = """
.path-explorer { background: #fff; color: #1a1a1a; color-scheme: light; border: 1px solid #8a8a8a; border-radius: .6rem; padding: 1rem;
  font-size: .95rem; line-height: 1.45; max-width: 100%; box-sizing: border-box; }
.path-explorer * { box-sizing: border-box; color: inherit; }
.path-explorer .controls { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: .4rem .8rem; align-items: center; }
.path-explorer .controls label { font-weight: 600; margin: 0; }
.path-explorer select { font: inherit; min-height: 2.2rem; max-width: 100%; background: #fff; border: 1px solid #6b6b6b; border-radius: .3rem; }
.path-explorer input[type=range] { width: 100%; height: 2.2rem; margin: 0; accent-color: #0072B2; }
.path-explorer :is(select, input, summary, .scroll):focus-visible { outline: 3px solid #0072B2; outline-offset: 2px; }
.path-explorer p { margin: .5rem 0; }
.path-explorer .charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(200px, 100%), 1fr)); gap: .8rem; }
.path-explorer .charts > div { display: flex; flex-direction: column; justify-content: space-between; }
.path-explorer .charts p { margin: 0 0 .2rem; min-height: 2.6em; }
.path-explorer .charts b { font-variant-numeric: tabular-nums; white-space: nowrap; }
.path-explorer svg { display: block; width: 100%; height: auto; }
.path-explorer .example { background: #f2f2f2; border-radius: .4rem; padding: .6rem .8rem; margin-top: .8rem; overflow-wrap: anywhere; }
.path-explorer .written { white-space: pre-wrap; min-height: 3em; }
.path-explorer details { margin-top: .8rem; }
.path-explorer .scroll { max-height: 20rem; overflow: auto; margin-top: .5rem; }
.path-explorer table { border-collapse: collapse; width: auto; margin: 0; font-size: .9rem; font-variant-numeric: tabular-nums; background: #fff; }
.path-explorer caption { caption-side: top; text-align: left; }
.path-explorer :is(th, td) { border: 0; border-bottom: 1px solid #ccc; padding: .2rem .6rem; text-align: right; white-space: nowrap; background: #fff; }
.path-explorer th[scope=row] { text-align: left; font-weight: 400; }
"""

_SCRIPT = """
(function () {
  const root = document.getElementById(NAME);
  if (!root || root.dataset.ready) return;
  root.dataset.ready = "yes";
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const part = name => root.querySelector("[data-part='" + name + "']");
  const select = root.querySelector("select"), slider = root.querySelector("input");
  const W = 240, H = 130, L = 40, R = 12, T = 8, B = 24;
  const x = t => L + t * (W - L - R);
  const say = (element, text) => { if (element.textContent !== text) element.textContent = text; };
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
    # "<" is written as an escape, so that no text of a model can end the script element.
    embedded = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    charts = "".join(
        f'<div><p>{_HEADINGS[metric]}: <b data-part="value {metric}"></b><br><small>95% interval <span data-part="interval {metric}"></span></small></p>'
        f'<svg data-part="svg {metric}" viewBox="0 0 240 130" aria-hidden="true"></svg></div>' for metric in metrics)
    identity = html.escape(name, quote=True)
    return HTML(
        f'<div class="path-explorer tex2jax_ignore mathjax_ignore" id="{identity}" role="group" aria-label="Explorer of paths between two updates">'
        f'<style>{_STYLE}</style><script type="application/json">{embedded}</script>'
        '<noscript><p>Moving along a path needs JavaScript; the table below holds the numbers.</p></noscript>'
        f'<div data-part="live" hidden><div class="controls"><label for="{identity}-path">path</label><select id="{identity}-path"></select>'
        f'<label for="{identity}-t">position t</label><input id="{identity}-t" type="range" min="0" max="1" step="1" value="0"></div>'
        f'<p data-part="place"></p><div class="charts">{charts}</div>'
        f'<div class="example"><p><b>One of the problems:</b> <span data-part="question"></span> <b>Its answer:</b> <span data-part="answer"></span>.</p>'
        f'<div aria-live="polite"><p><b data-part="verdict"></b></p><p class="written" data-part="written"></p></div></div></div>'
        f'{_table(paths, metrics)}</div><script>{_SCRIPT.replace("NAME", json.dumps(name).replace("<", chr(92) + "u003c"))}</script>')


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


def _table(paths, metrics):
    """The same numbers at the points where problems were answered, for readers without a script or a pointer."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in ("path", "t", *(_HEADINGS[metric] for metric in metrics), "the problem shown"))
    rows = []
    for path in paths:
        for place, t in enumerate(path["example"]["t"]):
            values = []
            for metric in metrics:
                curve = path["curves"][metric]
                nearest = min(range(len(curve["t"])), key=lambda i, curve=curve, t=t: abs(curve["t"][i] - t))
                values.append(f"{curve['value'][nearest]:.3f}")
            verdict = "right" if path["example"]["correct"][place] else "wrong"
            cells = "".join(f"<td>{text}</td>" for text in (f"{t:.2f}", *values, verdict))
            rows.append(f'<tr><th scope="row">{html.escape(path["from"])} to {html.escape(path["to"])}</th>{cells}</tr>')
    return (f'<details><summary>The numbers as a table</summary><div class="scroll" tabindex="0" role="region" aria-label="Table of the paths"><table>'
            f'<thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></details>')
