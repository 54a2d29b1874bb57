// The curves of one stage at a time, each drawn when it is looked at; a step that is chosen in them is what the rollouts below
// are filtered by.

// Calls once with each element that comes near the window.
function whenNear(seen) {
  const observer = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) { observer.unobserve(entry.target); seen(entry.target); }
  }, {rootMargin: "400px"});
  return observer;
}

function setUpCurves(rollouts) {
  const select = document.getElementById("curve-stage"), panels = document.getElementById("panels"), note = document.getElementById("curve-note");
  if (!select) return () => {};
  const parts = new Map(); // figure -> what it draws
  const draw = figure => drawChart(figure, parts.get(figure).panel, parts.get(figure).choose);
  const near = whenNear(figure => { parts.get(figure).drawn = true; draw(figure); });
  let shown = null, width = 0;
  const show = stage => {
    const curves = document.getElementById(`curves-${stage}`);
    if (stage === shown || !curves) return; // one that has not finished a step has none
    shown = select.value = stage;
    const choose = rollouts.has(stage) ? (after, to, from) => rollouts.show(stage, after + 1, to, from) : null;
    note.textContent = choose ? "A click on a curve shows the rollouts of that step; with the keyboard: arrows and Enter."
      : "No rollouts of this stage were kept, so its curves lead nowhere.";
    near.disconnect();
    parts.clear();
    for (const panel of JSON.parse(curves.textContent)) parts.set(emptyChart(panel), {panel, choose, drawn: false});
    panels.replaceChildren(...parts.keys());
    for (const figure of parts.keys()) near.observe(figure);
  };
  select.addEventListener("change", () => show(select.value));
  new ResizeObserver(() => {
    if (Math.abs(panels.clientWidth - width) < 4) return;
    width = panels.clientWidth;
    for (const [figure, part] of parts) if (part.drawn) draw(figure);
  }).observe(panels);
  addEventListener("beforeprint", () => parts.forEach((part, figure) => { part.drawn = true; draw(figure); }));
  show(select.value);
  return show;
}
