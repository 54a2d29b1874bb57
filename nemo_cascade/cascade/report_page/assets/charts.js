// Small line and area charts in SVG. A chart knows its panel and what to do with a step that was chosen, nothing of stages.

const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes = {}, text = "") {
  const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== "") made.textContent = text;
  return made;
}

function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1);
  return String(+value.toFixed(size >= 100 ? 1 : size >= 1 ? 3 : 4));
}

function colour(number) {
  return `var(--c${number % 10})`;
}

// Round numbers from low to high, at most five.
function ticks(low, high) {
  const rough = (high - low) / 3, size = 10 ** Math.floor(Math.log10(rough));
  const by = [1, 2, 5, 10].find(factor => factor * size >= rough * 0.999) * size;
  const from = Math.floor(low / by + 1e-6), to = Math.ceil(high / by - 1e-6), decimals = Math.max(0, -Math.floor(Math.log10(by) + 1e-6));
  const values = Array.from({length: to - from + 1}, (_, i) => (from + i) * by);
  const text = value => decimals > 4 && Math.abs(value) < 1e-2 ? (Math.abs(value) < by / 2 ? "0" : value.toExponential(1)) : value.toFixed(Math.min(decimals, 8));
  return {values, text, low: from * by, high: to * by, fine: decimals > 4};
}

// {title, explains, series: [{name, points: [[step, value], ...]}], stacked} -> <figure>
function chart(panel, choose, room) {
  const width = panel.stacked ? room : 320, height = panel.stacked ? 170 : 150;
  const left = 50, right = 8, top = 8, bottom = 20;
  const steps = [...new Set(panel.series.flatMap(series => series.points.map(point => point[0])))].sort((a, b) => a - b);
  const at = panel.series.map(series => new Map(series.points));
  const totals = panel.stacked ? steps.map(step => at.reduce((sum, values) => sum + (values.get(step) ?? 0), 0)) : [];
  const all = panel.stacked ? [0, ...totals] : panel.series.flatMap(series => series.points.map(point => point[1]));
  let low = all.reduce((a, b) => Math.min(a, b), Infinity), high = all.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!panel.stacked && low > 0 && low < high / 2) low = 0;
  if (low === high) { const around = Math.abs(low) * 0.1 || 0.5; low -= around; high += around; }
  const axis = ticks(low, high);
  ({low, high} = axis);
  const first = steps[0], last = steps[steps.length - 1];
  const x = step => first === last ? (left + width - right) / 2 : left + (step - first) / (last - first) * (width - left - right);
  const y = value => top + (high - value) / (high - low) * (height - top - bottom);

  const figure = element("figure", panel.stacked ? {class: "stacked"} : {});
  const caption = figure.appendChild(element("figcaption", {}, panel.title));
  caption.append(element("small", {}, panel.explains));
  const svg = figure.appendChild(element("svg:svg", {viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img",
    "aria-label": `${panel.title}: ${panel.series.map(series => series.name).join(", ")}`}));
  for (const value of axis.values) {
    svg.append(element("svg:line", {class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value)}));
    svg.append(element("svg:text", {x: left - 5, y: y(value) + 3.5, "text-anchor": "end"}, axis.text(value)));
  }
  svg.append(element("svg:text", {x: x(first), y: height - 4, "text-anchor": first === last ? "middle" : "start"}, `step ${first}`));
  if (first !== last) svg.append(element("svg:text", {x: x(last), y: height - 4, "text-anchor": "end"}, last));

  const base = steps.map(() => 0);
  panel.series.forEach((series, number) => {
    const drawn = colour(series.colour ?? number);
    if (panel.stacked) {
      const lower = base.slice();
      steps.forEach((step, i) => { base[i] += at[number].get(step) ?? 0; });
      const up = steps.map((step, i) => `${x(step)},${y(base[i])}`), down = steps.map((step, i) => `${x(step)},${y(lower[i])}`).reverse();
      svg.append(element("svg:polygon", {points: [...up, ...down].join(" "), fill: drawn, opacity: 0.8}));
    } else if (series.points.length === 1) {
      svg.append(element("svg:circle", {cx: x(series.points[0][0]), cy: y(series.points[0][1]), r: 3, fill: drawn}));
    } else {
      const path = series.points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
      svg.append(element("svg:polyline", {class: "curve", points: path, stroke: drawn}));
    }
  });
  const cursor = svg.appendChild(element("svg:line", {class: "cursor", y1: top, y2: height - bottom}));

  const legend = figure.appendChild(element("div", {class: "legend"}));
  const shown = panel.series.map((series, number) => {
    const item = legend.appendChild(element("span"));
    item.append(element("i", {class: "swatch", style: `background:${colour(series.colour ?? number)}`}));
    return item.appendChild(element("span", {}, series.name));
  });
  let place = steps.length - 1;
  const show = pointed => {
    panel.series.forEach((series, number) => {
      const value = at[number].get(steps[place]);
      shown[number].textContent = `${series.name} ${axis.fine && value !== undefined ? axis.text(value) : short(value)}${pointed && number === 0 ? ` (step ${steps[place]})` : ""}`;
    });
    cursor.style.visibility = pointed ? "visible" : "hidden";
    cursor.setAttribute("x1", x(steps[place]));
    cursor.setAttribute("x2", x(steps[place]));
  };
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), wanted = (event.clientX - box.left) / box.width * width;
    place = steps.reduce((best, step, i) => Math.abs(x(step) - wanted) < Math.abs(x(steps[best]) - wanted) ? i : best, 0);
    show(true);
  });
  svg.addEventListener("pointerleave", () => { place = steps.length - 1; show(false); });
  svg.addEventListener("keydown", event => {
    const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (by) { place = Math.min(steps.length - 1, Math.max(0, place + by)); show(true); event.preventDefault(); }
    if (event.key === "Enter") choose(steps[place - 1] ?? 0, steps[place]);
  });
  svg.addEventListener("blur", () => show(false));
  svg.addEventListener("click", () => choose(steps[place - 1] ?? 0, steps[place]));
  show(false);
  return figure;
}
