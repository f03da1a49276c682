// A walk along a path between two updates: charts with a cursor at t, and what the model writes.
// data: {metrics, headings: {metric: text}, ranges: {metric: [low, high]}, ticks: {metric:
// [number]}, paths: [{from, to, is_to_base, curves: {metric: {t, value, low, high}}, example:
// {question, answer, t, completion, correct}}]}; a metric's range is common to all paths.
/* global startExplorers */

startExplorers("paths", ({ element, data, part, write }) => {
  const select = element.querySelector("select");
  const slider = element.querySelector("input");

  // A chart in the units of its viewBox, which paths.html sets.
  const WIDTH = 240;
  const HEIGHT = 130;
  const LEFT = 40;
  const RIGHT = WIDTH - 12;
  const TOP = 8;
  const BOTTOM = HEIGHT - 24;
  const TEXT = { "font-size": 11.5, fill: "#1a1a1a" };
  const BLUE = "#0072B2";

  const x = (t) => LEFT + t * (RIGHT - LEFT);

  /** The function that gives the height of a value of this metric in its chart. */
  function scale(metric) {
    const [low, high] = data.ranges[metric];
    const margin = 0.06 * (high - low) || 0.5;
    return (value) => TOP + ((BOTTOM - TOP) * (high + margin - value)) / (high - low + 2 * margin);
  }

  function tickLabel(metric, value) {
    return metric === "accuracy" ? `${Math.round(100 * value)}%` : String(value);
  }

  function format(metric, value) {
    return metric === "accuracy" ? `${(100 * value).toFixed(1)}%` : value.toFixed(3);
  }

  /** Index of the number closest to t, the first of two that are equally close. */
  function nearest(numbers, t) {
    const distances = numbers.map((number) => Math.abs(number - t));
    return distances.reduce((best, each, i) => (each < distances[best] - 1e-9 ? i : best), 0);
  }

  function append(svg, tag, attributes, text) {
    const child = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) child.setAttribute(name, value);
    if (text !== undefined) child.textContent = text;
    svg.appendChild(child);
  }

  /** Draw the curve of one metric with its interval and its chord, and a cursor for `move`. */
  function draw(path, metric) {
    const svg = part(`svg ${metric}`);
    const y = scale(metric);
    const curve = path.curves[metric];
    const along = (values) => values.map((value, i) => [x(curve.t[i]), y(value)]);
    const listed = (points) => points.map((xy) => xy.map((v) => v.toFixed(1)).join(",")).join(" ");

    svg.replaceChildren();
    for (const tick of data.ticks[metric]) {
      append(svg, "line", { x1: LEFT, x2: RIGHT, y1: y(tick), y2: y(tick), stroke: "#d5d5d5" });
      const position = { x: LEFT - 4, y: y(tick) + 4, "text-anchor": "end" };
      append(svg, "text", { ...TEXT, ...position }, tickLabel(metric, tick));
    }
    append(svg, "text", { ...TEXT, x: x(0), y: HEIGHT - 6 }, path.from);
    append(svg, "text", { ...TEXT, x: x(1), y: HEIGHT - 6, "text-anchor": "end" }, path.to);
    const interval = [...along(curve.low), ...along(curve.high).reverse()];
    append(svg, "polygon", { points: listed(interval), fill: BLUE, opacity: 0.18 });
    append(svg, "line", {
      x1: x(0), x2: x(1), y1: y(curve.value[0]), y2: y(curve.value.at(-1)),
      stroke: "#6b6b6b", "stroke-dasharray": "3 3",
    });
    const points = along(curve.value);
    append(svg, "polyline", {
      points: listed(points), fill: "none", stroke: BLUE, "stroke-width": 2,
    });
    if (metric === "accuracy") {
      for (const [cx, cy] of points) append(svg, "circle", { cx, cy, r: 2.5, fill: BLUE });
    }
    append(svg, "line", {
      "data-part": `cursor ${metric}`, y1: TOP, y2: BOTTOM, stroke: "#1a1a1a",
    });
    append(svg, "circle", {
      "data-part": `dot ${metric}`, r: 5, fill: "#fff", stroke: "#1a1a1a", "stroke-width": 2,
    });
  }

  /** Put the cursor of one metric at t; returns the value there as text. */
  function read(curve, metric, t) {
    const i = nearest(curve.t, t);
    const cursor = part(`cursor ${metric}`);
    cursor.setAttribute("x1", x(t));
    cursor.setAttribute("x2", x(t));
    const dot = part(`dot ${metric}`);
    dot.setAttribute("cx", x(curve.t[i]));
    dot.setAttribute("cy", scale(metric)(curve.value[i]));
    const value = format(metric, curve.value[i]);
    const interval = `${format(metric, curve.low[i])} to ${format(metric, curve.high[i])}`;
    const where = metric === "accuracy" ? `, at t = ${curve.t[i].toFixed(2)}` : "";
    write(`value ${metric}`, value);
    write(`interval ${metric}`, interval + where);
    return value;
  }

  function move() {
    const path = data.paths[select.selectedIndex];
    const t = path.curves[data.metrics[0]].t[Number(slider.value)];
    const start = `${(1 - t).toFixed(2)} × the update of ${path.from}`;
    const end = path.is_to_base ? "" : ` + ${t.toFixed(2)} × the update of ${path.to}`;
    const position = `t = ${t.toFixed(2)}: ${start}${end}`;
    write("position", position);
    const values = data.metrics.map(
      (metric) => `${data.headings[metric]} ${read(path.curves[metric], metric, t)}`,
    );
    slider.setAttribute("aria-valuetext", `${position}: ${values.join("; ")}`);

    const example = path.example;
    const i = nearest(example.t, t);
    const grade = example.correct[i] ? "right" : "wrong";
    write("question", example.question);
    write("answer", example.answer);
    write("verdict", `At t = ${example.t[i].toFixed(2)} the model writes, ${grade}:`);
    write("completion", example.completion[i].trim() || "(nothing)");
  }

  function choosePath() {
    const path = data.paths[select.selectedIndex];
    const last = path.curves[data.metrics[0]].t.length - 1;
    slider.max = last;
    slider.value = Math.min(Number(slider.value), last);
    for (const metric of data.metrics) draw(path, metric);
    move();
  }

  for (const path of data.paths) {
    const option = document.createElement("option");
    option.textContent = `${path.from} to ${path.to}`;
    select.appendChild(option);
  }
  select.addEventListener("change", choosePath);
  slider.addEventListener("input", move);
  choosePath();
});
