// Small line and area charts in SVG. A chart knows its panel and what to do with a step that was chosen, nothing of stages.

const HEIGHT = 160, STACKED_HEIGHT = 190;

function colour(number) {
  return `var(--c${(number % 10 + 10) % 10})`;
}

// Round numbers from low to high, about as many as `parts`.
function ticks(low, high, parts = 3) {
  const rough = (high - low) / parts, size = 10 ** Math.floor(Math.log10(rough));
  const by = [1, 2, 5, 10].find(factor => factor * size >= rough * 0.999) * size;
  const from = Math.floor(low / by + 1e-6), to = Math.ceil(high / by - 1e-6), decimals = Math.max(0, -Math.floor(Math.log10(by) + 1e-6));
  const values = Array.from({length: to - from + 1}, (_, i) => (from + i) * by);
  const text = value => decimals > 4 && Math.abs(value) < 1e-2 ? (Math.abs(value) < by / 2 ? "0" : value.toExponential(1)) : value.toFixed(Math.min(decimals, 8));
  return {values, text, low: from * by, high: to * by, fine: decimals > 4};
}

// The first step, the last, and round ones between them that have room: at least `apart` pixels from each other by x.
function stepTicks(first, last, x, apart) {
  if (first === last) return [first];
  const inner = ticks(first, last, 6).values.filter(step => Number.isInteger(step) && x(step) - x(first) >= apart * 1.4 && x(last) - x(step) >= apart);
  return [first, ...inner.filter((step, i) => i === 0 || x(step) - x(inner[i - 1]) >= apart), last];
}

// {title, explains, series: [{name, colour, points: [[step, value], ...]}], stacked} -> a <figure> without its curves yet, so
// that nothing is drawn that is not looked at.
function emptyChart(panel) {
  const figure = element("figure", panel.stacked ? {class: "stacked"} : {});
  figure.appendChild(element("figcaption", {}, panel.title)).append(element("small", {}, panel.explains));
  figure.append(element("div", {class: "plot", style: `height:${(panel.stacked ? STACKED_HEIGHT : HEIGHT) + 24}px`}));
  return figure;
}

// Draws an empty chart, or draws it again as wide as it is now. choose(after, to), where there is something to choose: a step
// was, and the one drawn before it.
function drawChart(figure, panel, choose) {
  const plot = figure.querySelector(".plot"), width = Math.max(200, Math.round(plot.clientWidth)), height = panel.stacked ? STACKED_HEIGHT : HEIGHT;
  const top = 8, bottom = 22, right = 10;
  const steps = [...new Set(panel.series.flatMap(series => series.points.map(point => point[0])))].sort((a, b) => a - b);
  const at = panel.series.map(series => new Map(series.points));
  const totals = panel.stacked ? steps.map(step => at.reduce((sum, values) => sum + (values.get(step) ?? 0), 0)) : [];
  const all = panel.stacked ? [0, ...totals] : panel.series.flatMap(series => series.points.map(point => point[1]));
  let low = all.reduce((a, b) => Math.min(a, b), Infinity), high = all.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!panel.stacked && low > 0 && low < high / 2) low = 0;
  if (low === high) { const around = Math.abs(low) * 0.1; low -= around; high += around || 1; }
  const axis = ticks(low, high), left = 14 + 6.8 * Math.max(...axis.values.map(value => axis.text(value).length));
  ({low, high} = axis);
  const first = steps[0], last = steps[steps.length - 1];
  const x = step => first === last ? (left + width - right) / 2 : left + (step - first) / (last - first) * (width - left - right);
  const y = value => top + (high - value) / (high - low) * (height - top - bottom);

  const svg = element("svg:svg", {viewBox: `0 0 ${width} ${height}`, width, height, tabindex: 0, role: "img", class: choose ? "leads" : "",
    "aria-label": `${panel.title}, steps ${first} to ${last}: ${panel.series.map(series => `${series.name} ${short(series.points[series.points.length - 1]?.[1])}`).join(", ")} at the end`});
  for (const value of axis.values) {
    svg.append(element("svg:line", {class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value)}));
    svg.append(element("svg:text", {x: left - 7, y: y(value) + 4, "text-anchor": "end"}, axis.text(value)));
  }
  const marked = stepTicks(first, last, x, 16 + 7 * String(last).length);
  for (const step of marked) {
    const anchor = first === last ? "middle" : step === first ? "start" : step === last ? "end" : "middle";
    svg.append(element("svg:line", {class: "tick", x1: x(step), x2: x(step), y1: height - bottom, y2: height - bottom + 4}));
    svg.append(element("svg:text", {x: x(step), y: height - 5, "text-anchor": anchor}, step === first ? `step ${step}` : step));
  }

  const base = steps.map(() => 0);
  const drawn = panel.series.map((series, number) => {
    const paint = colour(series.colour ?? number);
    if (panel.stacked) {
      const lower = base.slice();
      steps.forEach((step, i) => { base[i] += at[number].get(step) ?? 0; });
      // One step alone is a bar.
      const ends = first === last ? [[x(first) - 12, 0], [x(first) + 12, 0]] : steps.map((step, i) => [x(step), i]);
      const up = ends.map(([px, i]) => `${px.toFixed(1)},${y(base[i]).toFixed(1)}`), down = ends.map(([px, i]) => `${px.toFixed(1)},${y(lower[i]).toFixed(1)}`).reverse();
      return svg.appendChild(element("svg:polygon", {points: [...up, ...down].join(" "), fill: paint}));
    }
    const line = series.points.map(([step, value]) => [x(step).toFixed(1), y(value).toFixed(1)]);
    if (line.length === 1) return svg.appendChild(element("svg:circle", {cx: line[0][0], cy: line[0][1], r: 3.5, fill: paint}));
    return svg.appendChild(element("svg:polyline", {class: "curve", points: line.map(point => point.join(",")).join(" "), stroke: paint}));
  });
  const cursor = svg.appendChild(element("svg:line", {class: "cursor", y1: top, y2: height - bottom}));

  const legend = element("div", {class: "legend"});
  panel.series.forEach((series, number) => {
    const item = legend.appendChild(element("span")), end = series.points[series.points.length - 1]?.[1];
    item.append(element("i", {class: "swatch", style: `background:${colour(series.colour ?? number)}`}), `${series.name} ${axis.fine ? axis.text(end) : short(end)}`);
    item.addEventListener("pointerenter", () => drawn.forEach((line, i) => line.classList.toggle("faded", i !== number)));
    item.addEventListener("pointerleave", () => drawn.forEach(line => line.classList.remove("faded")));
  });

  let place = steps.length - 1;
  const show = () => {
    cursor.style.visibility = "visible";
    cursor.setAttribute("x1", x(steps[place]));
    cursor.setAttribute("x2", x(steps[place]));
    const box = svg.getBoundingClientRect(), lines = [element("b", {}, `step ${steps[place]}`)];
    panel.series.forEach((series, number) => {
      const value = at[number].get(steps[place]);
      if (value === undefined) return;
      const line = element("span");
      line.append(element("i", {class: "swatch", style: `background:${colour(series.colour ?? number)}`}), `${series.name} ${axis.fine ? axis.text(value) : short(value)}`);
      lines.push(line);
    });
    if (panel.stacked) lines.push(element("span", {}, `together ${short(totals[place])}`));
    if (choose) lines.push(element("small", {}, "click or Enter: its rollouts"));
    showTip(box.left + x(steps[place]) / width * box.width, box.top + top, ...lines);
  };
  const hide = () => { place = steps.length - 1; cursor.style.visibility = "hidden"; hideTip(); };
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), wanted = (event.clientX - box.left) / box.width * width;
    place = steps.reduce((best, step, i) => Math.abs(x(step) - wanted) < Math.abs(x(steps[best]) - wanted) ? i : best, 0);
    show();
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("keydown", event => {
    const to = {ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: steps.length - 1}[event.key];
    if (to !== undefined) { place = Math.min(steps.length - 1, Math.max(0, to)); show(); event.preventDefault(); }
    if (event.key === "Escape") hide();
    if (event.key === "Enter") leave();
  });
  svg.addEventListener("blur", hide);
  svg.addEventListener("click", () => leave());
  const leave = () => {
    const after = steps[place - 1] ?? 0, to = steps[place];
    hide();
    choose?.(after, to, svg);
  };
  plot.style.height = "";
  plot.replaceChildren(svg, legend);
}
