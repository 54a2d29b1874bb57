// Elements, figures as text, and one box beside whatever is pointed at, by pointer, finger or keyboard.

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

// x, y: of the point in the window; the box stands above it where there is room, never over it.
function showTip(x, y, ...lines) {
  const tip = document.getElementById("tip");
  tip.replaceChildren(...lines);
  tip.hidden = false;
  const {width, height} = tip.getBoundingClientRect(), edge = 8;
  tip.style.left = `${Math.max(edge, Math.min(document.documentElement.clientWidth - width - edge, x - width / 2))}px`;
  tip.style.top = `${y - height - 14 > edge ? y - height - 14 : y + 22}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}
