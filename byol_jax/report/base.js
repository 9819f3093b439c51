// What the scripts of all pages share: the theme, the library that draws, the look of charts, printing and
// the navigation. Everything that a page draws is in the page itself.
const $ = id => document.getElementById(id);
const root = document.documentElement;
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const unpack = text => new Response(
  new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("gzip"))).text();

// Theme: that of the system until the button is pressed.
const isDark = () => root.style.colorScheme === "dark" ||
  (!root.style.colorScheme && matchMedia("(prefers-color-scheme: dark)").matches);
const nameTheme = () => { $("theme").textContent = isDark() ? "Light" : "Dark"; };
let restyle = () => {};  // of the charts, once there are any
const useTheme = name => { root.style.colorScheme = name; nameTheme(); restyle(); };
try { root.style.colorScheme = localStorage.getItem("theme") || ""; } catch { /* no storage */ }
nameTheme();
$("theme").onclick = () => {
  useTheme(isDark() ? "light" : "dark");
  try { localStorage.setItem("theme", root.style.colorScheme); } catch { /* no storage */ }
};
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { nameTheme(); restyle(); });
const colour = name => {  // of a CSS variable, resolved for the theme
  const probe = document.body.appendChild(make("i"));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
};

if (!("DecompressionStream" in window)) {
  $("message").textContent = "This browser is too old for the charts and the pictures of this page: " +
    "they need DecompressionStream (Chrome 80, Safari 16.4, Firefox 113 or newer).";
  return;
}
const drawn = JSON.parse(await unpack($("drawn").textContent));
(0, eval)(await unpack($("library").textContent));
$("message").hidden = true;

// Charts.
const PALETTE = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"];  // Paul Tol's
const charts = [];
const fontOf = () => ({ family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--muted") });
const axis = title => ({ gridcolor: colour("--line"), zerolinecolor: colour("--line"), title: { text: title } });
const layoutOfCurve = (x = "step") => ({
  margin: { l: 44, r: 8, t: 8, b: 36 }, font: fontOf(), hovermode: "x",
  paper_bgcolor: "transparent", plot_bgcolor: "transparent",
  legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
  xaxis: axis(x), yaxis: axis(""),
});

// On paper the charts are light.
let before = null;
addEventListener("beforeprint", () => { before = root.style.colorScheme; root.style.colorScheme = "light"; restyle(); });
addEventListener("afterprint", () => { root.style.colorScheme = before; restyle(); });

// The section that is read is marked in the navigation.
const links = new Map([...document.querySelectorAll("nav a")].map(link => [link.hash.slice(1), link]));
const observer = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(target.id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-20% 0px -75% 0px" });
for (const id of links.keys()) observer.observe($(id));
