"use strict";
// Paints the map of any pair of adapters from the numbers in the page; without it the figures stand.
const data = JSON.parse(document.getElementById("data").textContent);
const part = name => document.getElementById(name);
const values = new DataView(Uint8Array.from(atob(data.values), letter => letter.charCodeAt(0)).buffer);
const {modules, pairs, statistics} = data;

// {value, isWithinChance} of a module; pair: its number, and whether its adapters are taken the other way round
function measured(statistic, {number, isMirrored}, module) {
  const {parts, mirrored} = statistics[statistic];
  const row = (isMirrored ? mirrored : statistic) * pairs.length + number;
  const stored = values.getInt16(2 * (row * modules.length + module), true);
  return stored === -32768 ? null : {value: (stored >> 1) / parts, isWithinChance: stored & 1};
}
function colour({low, high, first}, value) {
  const step = first + (20 - first) * (value - low) / (high - low);
  return Math.max(first, Math.min(20, Math.floor(step + .5)));
}
function written(statistic, pair, module) {
  const found = measured(statistic, pair, module);
  if (!found) return "–";
  const {parts, unit} = statistics[statistic];
  return found.value.toFixed(parts === 10 ? 1 : 3) + unit + (found.isWithinChance ? " (chance)" : "");
}

function options(name, labels, chosen) {
  const select = part(name);
  select.replaceChildren(...labels.map(([value, label]) => new Option(label, value, false, value === chosen)));
}
function chosenPair() {
  const first = +part("first").value, second = +part("second").value;
  const number = pairs.findIndex(pair => pair.includes(first) && pair.includes(second));
  return {number, isMirrored: pairs[number][0] !== first};
}
const chosenStatistic = () => statistics.findIndex(
  ({name, side}) => name === part("statistic").value && side === part("side").value);

function offerSeconds() {
  const first = +part("first").value, before = +part("second").value;
  const others = pairs.filter(pair => pair.includes(first)).map(([i, j]) => i === first ? j : i);
  options("second", others.map(j => [j, data.adapters[j]]), others.includes(before) ? before : others[0]);
}
function offerSides() {
  const before = part("side").value;
  const sides = statistics.filter(({name}) => name === part("statistic").value).map(({side}) => side);
  options("side", sides.map(side => [side, side || "both"]), sides.includes(before) ? before : sides[0]);
  part("side").disabled = sides.length === 1;
}

function scale({low, high, first, unit}) {
  const steps = Array.from({length: 21 - first}, (_, step) =>
    `<rect class="q${first + step}" x="${8 * step}" width="8" height="12"/>`);
  part("scale").innerHTML =
    `${low}${unit} <svg width="${8 * steps.length}" height="12">${steps.join("")}</svg> ${high}${unit}`;
}

function paint() {
  const pair = chosenPair(), statistic = chosenStatistic();
  const [width, height] = data.cell;
  const boxes = new Map(), layer = +part("layer").value;
  let hatches = "", chosen = "";
  for (let module = 0; module < modules.length; module += 1) {
    const found = measured(statistic, pair, module), x = data.x[module], y = data.y[module];
    if (!found) continue;
    const step = colour(statistics[statistic], found.value), box = `M${x} ${y}h${width}v${height}h-${width}z`;
    boxes.set(step, (boxes.get(step) || "") + box);
    if (found.isWithinChance) hatches += `M${x} ${y + height}l${width}-${height}`;
    if (data.column[module] === layer) chosen += box;
  }
  const drawn = [...boxes].map(([step, d]) => [`q${step}`, d]);
  const paths = [...drawn, ["hatch", hatches], ["chosen", chosen]].map(([name, d]) => {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", name);
    path.setAttribute("d", d);
    return path;
  });
  const chart = part("map").querySelector("svg");
  chart.querySelector(".cells").replaceChildren(...paths);
  const {name, side, caption} = statistics[statistic];
  const [first, second] = ["first", "second"].map(name => data.adapters[part(name).value]);
  const title = `${name}${side && `, ${side}`}: ${first} and ${second}`;
  chart.setAttribute("aria-label", `Map of layers and projections, ${title}`);
  part("caption").textContent = `${title}. ${caption} Hatched: within what chance gives.`;
  scale(statistics[statistic]);
  tabulate(pair, layer);
}

function cell(kind, text) {
  const element = document.createElement(kind);
  element.textContent = text;
  if (kind === "th") element.scope = "col";
  return element;
}
function tabulate(pair, layer) {
  const row = cells => {
    const element = document.createElement("tr");
    element.append(...cells);
    return element;
  };
  const heads = statistics.map(({name, side}) => cell("th", side ? `${name}, ${side}` : name));
  const rows = modules.flatMap((name, module) => data.column[module] !== layer ? [] : [row(
    [cell("td", name), ...statistics.map((_, each) => cell("td", written(each, pair, module)))])]);
  part("numbers").replaceChildren(row([cell("th", "module"), ...heads]), ...rows);
}

options("first", [...new Set(pairs.flat())].sort((i, j) => i - j).map(i => [i, data.adapters[i]]), pairs[0][0]);
options("statistic", [...new Set(statistics.map(({name}) => name))].map(name => [name, name]));
options("layer", data.columns.map((label, column) => [column, label === "–" ? "none" : label]));
part("first").addEventListener("change", () => { offerSeconds(); paint(); });
part("statistic").addEventListener("change", () => { offerSides(); paint(); });
for (const name of ["second", "side", "layer"]) part(name).addEventListener("change", paint);
part("map").addEventListener("click", event => {
  const chart = part("map").querySelector("svg");
  const {x, y} = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
  const module = modules.findIndex((_, each) =>
    x >= data.x[each] && x < data.x[each] + data.cell[0] && y >= data.y[each] && y < data.y[each] + data.cell[1]);
  if (module < 0) return;
  part("layer").value = data.column[module];
  paint();
});
offerSeconds();
offerSides();
paint();
part("explorer").hidden = false;
