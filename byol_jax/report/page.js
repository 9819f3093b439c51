// The charts, the map and the pictures of a page about a run.
const numbers = text => text && new Uint16Array(bytes(text).buffer);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const { count, side, across, names, classes } = drawn;
const labels = numbers(drawn.labels), clusters = numbers(drawn.clusters);
const points = numbers(drawn.points);
const x = Array.from({ length: count }, (_, i) => points[2 * i] / 32767.5 - 1);
const y = Array.from({ length: count }, (_, i) => points[2 * i + 1] / 32767.5 - 1);
const groupsOf = {
  labels: { of: labels, name: k => classes[k], count: classes.length },
  clusters: { of: clusters, name: k => `cluster ${k + 1}`, count: Math.max(...clusters) + 1 },
};

// Pictures: backgrounds that show a part of a sheet.
const sheets = [...document.querySelectorAll(".sheet")].map(
  script => `url(${URL.createObjectURL(new Blob([bytes(script.textContent)], { type: "image/webp" }))})`);
function paint(element, i, size = 64) {
  const place = i % (across * across);
  Object.assign(element.style, {
    backgroundImage: sheets[Math.floor(i / (across * across))],
    backgroundSize: `calc(${across} * var(--size)) auto`,
    backgroundPosition: `calc(${-(place % across)} * var(--size)) calc(${-Math.floor(place / across)} * var(--size))`,
    imageRendering: side < 40 ? "pixelated" : "auto",
  });
  element.style.setProperty("--size", `${size}px`);
  return element;
}
for (const element of document.querySelectorAll("[data-i]")) paint(element, +element.dataset.i);
const describe = i => names[i] + (labels && i < count ? `, ${classes[labels[i]]}` : "");
const picture = (i, size) => paint(make("span", { className: "thumb" }), i, size);
const button = (i, size) => {
  const made = make("button", { type: "button", className: "thumb", title: describe(i) });
  made.setAttribute("aria-label", describe(i));
  made.dataset.i = i;
  return paint(made, i, size);
};

// Curves by step.
document.querySelectorAll("#curves .chart").forEach((element, k) => {
  const lines = Object.entries(drawn.curves[k].lines).map(([name, [steps, values]], j) => ({
    x: steps, y: values, name: name.replaceAll("_", " "), mode: steps.length < 30 ? "lines+markers" : "lines",
    line: { color: PALETTE[j % 6], width: 2, dash: ["solid", "dash", "dot"][j % 3] },
    showlegend: Object.keys(drawn.curves[k].lines).length > 1,
  }));
  Plotly.newPlot(element, lines, layoutOfCurve(), { displayModeBar: false, responsive: true });
  charts.push(element);
});

// The map.
const plot = $("plot"), SYMBOLS = ["circle", "diamond", "square", "triangle-up", "cross"];
const hasWebgl = !!document.createElement("canvas").getContext("webgl");
const kind = hasWebgl ? "scattergl" : "scatter";
let grouping = labels ? "labels" : "clusters", only = null, chosen = null;
const colourOf = k => PALETTE[k % 6], symbolOf = k => SYMBOLS[Math.floor(k / 6) % 5];
function marks() {
  const of = groupsOf[grouping].of, faint = colour("--line"), all = { color: [], symbol: [] };
  const [small, large] = count > 3000 ? [3, 5] : [4, 7];
  all.size = only === null ? large : [];  // one size is drawn faster
  for (let i = 0; i < count; i++) {
    const isShown = only === null || of[i] === only;
    all.color.push(isShown ? colourOf(of[i]) : faint);
    all.symbol.push(symbolOf(of[i]));
    if (only !== null) all.size.push(isShown ? large : small);
  }
  return all;
}
const ring = (size, name) => ({
  x: [], y: [], visible: false, type: kind, mode: "markers", hoverinfo: "skip",
  marker: { size, symbol: "circle-open", color: colour(name), line: { width: 2.5, color: colour(name) } },
});
const bare = () => ({
  visible: true, showgrid: false, zeroline: false, showticklabels: false, ticks: "",
});
const layoutOfMap = () => ({
  margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false, dragmode: "pan", hovermode: "closest",
  paper_bgcolor: "transparent", plot_bgcolor: "transparent", hoverdistance: 12,
  xaxis: { ...bare(), range: [-1.06, 1.06] }, yaxis: { ...bare(), range: [-1.06, 1.06] },
});
await Plotly.newPlot(plot,
  [{ x, y, type: kind, mode: "markers", hoverinfo: "none", marker: { ...marks(), line: { width: 0 } } },
    ring(13, "--text"), ring(20, "--accent")],
  layoutOfMap(), { displayModeBar: false, scrollZoom: true, responsive: true });
const recolour = () => {
  const { color, symbol, size } = marks();
  Plotly.restyle(plot, { "marker.color": [color], "marker.symbol": [symbol], "marker.size": [size] }, [0]);
};
// The page scrolls past the map until the map is clicked.
plot.addEventListener("wheel", event => {
  if (!plot.contains(document.activeElement) && !event.ctrlKey) event.stopPropagation();
}, true);
plot.addEventListener("pointerdown", () => plot.focus({ preventScroll: true }));

function drawLegend() {
  const { of, name, count: groups } = groupsOf[grouping], sizes = new Array(groups).fill(0);
  for (let i = 0; i < count; i++) sizes[of[i]]++;
  const shapes = ['<circle cx="6" cy="6" r="5"/>', '<path d="M6 0 12 6 6 12 0 6Z"/>', '<path d="M1 1H11V11H1Z"/>',
    '<path d="M6 0 12 11H0Z"/>', '<path d="M4 0H8V4H12V8H8V12H4V8H0V4H4Z"/>'];
  $("legend").replaceChildren(...sizes.map((size, k) => {
    const item = make("button", { type: "button" });
    item.innerHTML = `<svg viewBox="0 0 12 12" aria-hidden="true" fill="${colourOf(k)}">${shapes[Math.floor(k / 6) % 5]}</svg>`;
    item.append(`${name(k)} (${size.toLocaleString("en")})`);
    item.setAttribute("aria-pressed", only === k);
    item.onclick = () => { only = only === k ? null : k; drawLegend(); recolour(); $("legend").children[k].firstChild.focus(); };
    return make("li", {}, item);
  }));
}
drawLegend();
if (labels) $("colour").onchange = event => { grouping = event.target.value; only = null; drawLegend(); recolour(); };

// An image and its neighbours, after training and before.
const near = Object.fromEntries(Object.entries(drawn.near).map(([row, text]) =>
  [row, { of: numbers(text), similarity: numbers(drawn.similarities[row]) }]));
const TITLES = { trained: "Nearest after training", untrained: "Nearest before training" };
function choose(i) {
  chosen = i;
  const found = near.trained.of, wide = found.length / count;
  const mine = Array.from(found.subarray(i * wide, (i + 1) * wide));
  Plotly.restyle(plot, { x: [mine.map(j => x[j]), [x[i]]], y: [mine.map(j => y[j]), [y[i]]], visible: true }, [1, 2]);
  const about = make("p", {}, make("strong", { textContent: names[i] }));
  about.append(make("br"), (labels ? `${classes[labels[i]]}, ` : "") + `cluster ${clusters[i] + 1}`);
  const parts = [make("div", { className: "chosen" }, picture(i, 112), about)];
  for (const [row, { of, similarity }] of Object.entries(near)) {
    const list = make("ol", { className: "near" });
    for (let k = i * wide; k < (i + 1) * wide; k++) {
      const j = of[k], isSame = labels && labels[j] === labels[i];
      const text = make("div", { textContent: (similarity[k] / 1000 - 1).toFixed(3) });
      if (isSame) text.append(make("span", { className: "same", textContent: " ✓", title: "the same class" }));
      list.append(make("li", {}, button(j, 72), text));
    }
    const same = labels ? Array.from(of.subarray(i * wide, (i + 1) * wide)).filter(j => labels[j] === labels[i]).length : 0;
    const title = labels ? `${TITLES[row]}: ${same} of ${wide} of its class` : TITLES[row];
    parts.push(make("h3", { textContent: title }), list);
  }
  $("panel").replaceChildren(...parts);
  $("said").textContent = `${describe(i)}. ${parts.filter(part => part.tagName === "H3").map(part => part.textContent).join(". ")}`;
}
document.addEventListener("click", event => {
  const thumb = event.target.closest("button.thumb, .hits button");
  if (!thumb) return;
  choose(+thumb.dataset.i);
  if (!$("map").contains(thumb)) location.hash = "map";  // the browser's Back returns
});
plot.on("plotly_click", ({ points: [point] }) => {
  if (point.curveNumber === 0) choose(point.pointIndex);
});
plot.on("plotly_hover", ({ points: [point], event }) => {
  if (point.curveNumber !== 0) return;
  const i = point.pointIndex, tip = $("tip");
  tip.replaceChildren(picture(i, 112), describe(i));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - box.width - 4)}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 4))}px`;
});
plot.on("plotly_unhover", () => { $("tip").hidden = true; });

// Moving the map.
const ranges = () => [plot._fullLayout.xaxis.range, plot._fullLayout.yaxis.range];
function look(xs, ys) { return Plotly.relayout(plot, { "xaxis.range": xs, "yaxis.range": ys }); }
function zoom(factor) {
  const [xs, ys] = ranges().map(([low, high]) => {
    const middle = (low + high) / 2, half = (high - low) / 2 * factor;
    return [middle - half, middle + half];
  });
  look(xs, ys);
}
function everything() { look([-1.06, 1.06], [-1.06, 1.06]); }
$("in").onclick = () => zoom(0.6);
$("out").onclick = () => zoom(1 / 0.6);
$("reset").onclick = everything;
const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
plot.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "+" || event.key === "=") zoom(0.6);
  else if (event.key === "-") zoom(1 / 0.6);
  else if (event.key === "0") everything();
  else if (ARROWS[event.key]) step(...ARROWS[event.key]);
  else return;
  event.preventDefault();
});
function step(right, up) {  // to the nearest image within 45 degrees of a direction
  if (chosen === null) return choose(0);
  let best = null, least = Infinity;
  for (let i = 0; i < count; i++) {
    const dx = x[i] - x[chosen], dy = y[i] - y[chosen], ahead = dx * right + dy * up;
    const aside = Math.abs(dx * up) + Math.abs(dy * right), distance = dx * dx + dy * dy;
    if (ahead > 0 && aside <= ahead && distance < least) [best, least] = [i, distance];
  }
  if (best === null) return;
  choose(best);
  const [xs, ys] = ranges(), [w, h] = [(xs[1] - xs[0]) / 2, (ys[1] - ys[0]) / 2];
  if (x[best] < xs[0] || x[best] > xs[1] || y[best] < ys[0] || y[best] > ys[1]) {
    look([x[best] - w, x[best] + w], [y[best] - h, y[best] + h]);
  }
}

// Search.
$("find").oninput = () => {
  const text = $("find").value.trim().toLowerCase(), hits = $("hits"), found = [];
  for (let i = 0; text && i < count; i++) if (describe(i).toLowerCase().includes(text)) found.push(i);
  hits.hidden = !text;
  hits.replaceChildren(
    make("li", { className: "muted", role: "status", textContent: plural(found.length, "image") + (found.length > 30 ? ", the first 30" : "") }),
    ...found.slice(0, 30).map(i => {
      const item = make("button", { type: "button", title: describe(i) }, picture(i, 40), make("span", { className: "label", textContent: names[i] }));
      item.dataset.i = i;
      return make("li", {}, item);
    }));
};

// Colours of the charts follow the theme.
restyle = () => {
  for (const chart of charts) Plotly.relayout(chart, layoutOfCurve());
  recolour();
  for (const [trace, name] of [[1, "--text"], [2, "--accent"]])
    Plotly.restyle(plot, { "marker.color": colour(name), "marker.line.color": colour(name) }, [trace]);
};
