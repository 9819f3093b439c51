// The curves of several runs: one line for each run in every chart.
const DASHES = ["solid", "dash", "dot"], { runs } = drawn, hidden = new Set();
const colourOf = run => PALETTE[run % 6], dashOf = run => DASHES[Math.floor(run / 6) % 3];
const key = run => {
  const dash = { solid: "", dash: "5 3", dot: "2 2" }[dashOf(run)];
  return `<svg viewBox="0 0 18 10" aria-hidden="true"><path d="M0 5H18" stroke="${colourOf(run)}" stroke-width="3" stroke-dasharray="${dash}"/></svg>`;
};
for (const element of document.querySelectorAll("[data-run]")) element.insertAdjacentHTML("afterbegin", key(+element.dataset.run));

// Axes and smoothing.
const over = () => $("over").value, smoothing = () => +$("smoothing").value;
const longest = Math.max(0, ...drawn.charts.flatMap(chart => chart.lines.map(line => line.seconds.at(-1) || 0)));
const [unit, divisor] = longest > 7200 ? ["hours", 3600] : longest > 120 ? ["minutes", 60] : ["seconds", 1];
const titleOfX = () => ({ step: "step", epoch: "epoch", time: unit })[over()];
const places = line => ({
  step: () => line.steps,
  epoch: () => line.steps.map(step => step / runs[line.run].steps_per_epoch),
  time: () => line.seconds.map(seconds => seconds === null ? null : seconds / divisor),
})[over()]();
function smooth(values) {  // an exponential moving average without bias towards its start
  const weight = smoothing();
  let sum = 0, total = 0;
  return values.map(value => (sum = weight * sum + (1 - weight) * value) / (total = weight * total + 1 - weight));
}
function tracesOf({ lines }) {
  return lines.flatMap(line => {
    const x = places(line), { name } = runs[line.run], visible = !hidden.has(line.run);
    const style = { color: colourOf(line.run), dash: dashOf(line.run), width: 2 };
    const isShort = line.steps.length < 30;  // and is drawn as it is
    const shown = { x, y: line.values, name, visible, mode: isShort ? "lines+markers" : "lines", line: style, marker: { size: 5 } };
    if (!smoothing() || isShort) return [shown];
    const raw = { ...shown, opacity: 0.25, hoverinfo: "skip", line: { ...style, dash: "solid", width: 1 } };
    return [raw, { ...shown, y: smooth(line.values) }];
  });
}
function layoutOf({ metric }) {
  const layout = { ...layoutOfCurve(titleOfX()), showlegend: false };
  if (metric.endsWith("top1")) layout.yaxis.tickformat = ".0%";
  return layout;
}
function draw() {
  for (const element of document.querySelectorAll(".chart")) {
    if (element.closest("details:not([open])")) continue;  // it has no size yet
    const chart = drawn.charts[element.dataset.chart];
    Plotly.react(element, tracesOf(chart), layoutOf(chart), { displayModeBar: false, responsive: true });
  }
  if ($("untimed")) $("untimed").hidden = over() !== "time" ||
    drawn.charts.every(chart => chart.lines.every(line => line.seconds[0] !== null));
}
restyle = draw;

if ($("over")) {
  $("over").onchange = $("smoothing").oninput = draw;
  if ($("more")) $("more").ontoggle = draw;
  $("legend").append(...runs.map(({ name }, run) => {
    const item = make("button", { type: "button", innerHTML: key(run) });
    item.append(name);
    item.setAttribute("aria-pressed", true);
    item.onclick = () => {
      if (!hidden.delete(run)) hidden.add(run);
      item.setAttribute("aria-pressed", !hidden.has(run));
      draw();
    };
    return make("li", {}, item);
  }));
  draw();
}
