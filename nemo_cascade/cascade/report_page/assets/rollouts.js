// Kept replies: chosen by an index of all of them, shown ten at a time, their pages loaded when one of them is shown. Nothing of
// it is read before the section is looked at.

const SHOWN = 10;
const waiting = new Map(); // page number -> resolve
const loaded = new Map(); // page number -> promise of its replies

// What the scripts beside this file call.
function reportPage(number, replies) {
  waiting.get(number)?.(replies);
}

function loadPage(number) {
  if (!loaded.has(number)) {
    const inline = document.getElementById(`page-${number}`);
    loaded.set(number, inline ? Promise.resolve(JSON.parse(inline.textContent)) : new Promise((resolve, reject) => {
      waiting.set(number, resolve);
      const script = element("script", {src: `rollouts/page_${number}.js`});
      script.addEventListener("error", () => { loaded.delete(number); reject(new Error(`rollouts/page_${number}.js`)); });
      document.head.append(script);
    }));
  }
  return loaded.get(number);
}

// {values, width, codes} -> {values, of: which value each entry is, none: which of them is null, or -1}
function unpacked({values, width, codes}) {
  const digits = new Uint8Array(128), count = codes.length / width, of = new Uint32Array(count);
  [..."0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"].forEach((digit, number) => { digits[digit.charCodeAt(0)] = number; });
  for (let i = 0, at = 0; i < count; i++) {
    let number = 0;
    for (let shift = 0; shift < 6 * width; shift += 6) number |= digits[codes.charCodeAt(at++)] << shift;
    of[i] = number;
  }
  return {values, of, none: values.indexOf(null)};
}

// Numbers of the values between two texts of inputs; an empty one bounds nothing. Where one is given, null is not between.
function between({values, none}, least, most) {
  if (least === "" && most === "") return [0, values.length - 1];
  const end = none < 0 ? values.length : none;
  let low = 0, high = end - 1;
  if (least !== "") while (low < end && values[low] < Number(least)) low++;
  if (most !== "") while (high >= 0 && values[high] > Number(most)) high--;
  return [low, high];
}

// has(stage): whether rollouts of it were kept. show(stage, from, to, origin): those of its steps; origin: where the reader was.
function setUpRollouts() {
  const form = document.getElementById("filters");
  if (!form) return {has: () => false, show() {}};
  const replies = document.getElementById("replies"), range = document.getElementById("range"), bar = document.getElementById("at-step");
  const fields = form.elements, stages = [...fields.stage.options].map(option => option.value === "" ? null : option.text);
  let index = null, chosen = [], page = 0, drawn = 0, origin = null, note = "";

  const read = () => {
    if (index) return index;
    const {columns, firsts} = JSON.parse(document.getElementById("index").textContent);
    index = {firsts, count: columns.stage.codes.length / columns.stage.width};
    for (const name of Object.keys(columns)) index[name] = unpacked(columns[name]);
    return index;
  };

  const filter = () => {
    const {count, stage, domain, cut, step, reward} = read();
    const is = (column, value) => value === "" ? [0, column.values.length] : [Number(value), Number(value)];
    const [[s, S], [d, D]] = [is(stage, fields.stage.value), is(domain, fields.domain.value)];
    const [[c, C], [t, T], [r, R]] = [between(cut, fields.cut.value, fields.cut.value), between(step, fields.from.value, fields.to.value), between(reward, fields.low.value, fields.high.value)];
    const all = new Uint32Array(count);
    let kept = 0;
    for (let i = 0; i < count; i++) {
      const a = stage.of[i], b = domain.of[i], e = cut.of[i], g = step.of[i], h = reward.of[i];
      if (a >= s && a <= S && b >= d && b <= D && e >= c && e <= C && g >= t && g <= T && h >= r && h <= R) all[kept++] = i;
    }
    chosen = all.subarray(0, kept);
    const order = fields.order.value;
    if (order !== "") {
      const {of, none} = index[order.replace("-", "")], sign = order.startsWith("-") ? 1 : -1;
      // Those without a value last, whichever way.
      chosen.sort((a, b) => (of[a] === none) - (of[b] === none) || sign * (of[a] - of[b]) || a - b);
    }
    page = 0;
    draw();
  };

  // The step of a stage with kept rollouts that is next to `from` (by -1) or `to` (by 1); undefined where there is none.
  const neighbour = (stageNumber, from, to, by) => {
    const {count, stage, step} = read();
    let best;
    for (let i = 0; i < count; i++) {
      const here = step.values[step.of[i]];
      if (stage.of[i] !== stageNumber || (by < 0 ? here >= from : here <= to)) continue;
      if (best === undefined || (by < 0 ? here > best : here < best)) best = here;
    }
    return best;
  };

  const drawBar = () => {
    bar.hidden = [fields.stage.value, fields.from.value, fields.to.value].includes("");
    if (bar.hidden) return;
    const [stage, from, to] = [fields.stage, fields.from, fields.to].map(field => Number(field.value));
    bar.querySelector("b").textContent = `${stages[stage + 1]}, ${from === to ? `step ${from}` : `steps ${from} to ${to}`}${note}`;
    for (const button of bar.querySelectorAll("button")) {
      const step = neighbour(stage, from, to, Number(button.dataset.step));
      button.disabled = step === undefined;
      button.value = step ?? "";
      button.textContent = Number(button.dataset.step) < 0 ? `‹ ${step === undefined ? "step" : `step ${step}`}` : `${step === undefined ? "step" : `step ${step}`} ›`;
    }
  };

  const pageOf = i => { // the last page whose first reply is not after i
    const {firsts} = index;
    let low = 0, high = firsts.length - 1;
    while (low < high) { const middle = (low + high + 1) >> 1; if (firsts[middle] <= i) low = middle; else high = middle - 1; }
    return low;
  };
  const draw = async () => {
    const turn = ++drawn, first = page * SHOWN, here = [...chosen.subarray(first, first + SHOWN)];
    range.textContent = chosen.length ? `${first + 1}–${first + here.length} of ${chosen.length.toLocaleString("en")}` : "none is like that";
    for (const button of document.querySelectorAll("[data-page]")) {
      button.disabled = button.dataset.page < 0 ? page === 0 : first + SHOWN >= chosen.length;
    }
    drawBar();
    drawScale(fields.colour.value);
    try {
      const found = await Promise.all(here.map(async i => {
        const number = pageOf(i);
        return [index.stage.values[index.stage.of[i]], (await loadPage(number))[i - index.firsts[number]]];
      }));
      if (turn !== drawn) return; // another choice was made meanwhile
      replies.replaceChildren(...byPrompt(found).map(([stage, same]) => promptCard(stage, same, fields.colour.value)));
    } catch (error) {
      replies.replaceChildren(element("p", {class: "problem"}, `${error.message} cannot be loaded: it belongs beside this page. If the report was written again, reload.`));
    }
  };

  form.addEventListener("input", event => {
    note = "";
    if (event.target.name === "colour") draw(); else filter();
  });
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  for (const button of document.querySelectorAll("[data-page]")) {
    button.addEventListener("click", () => {
      page += Number(button.dataset.page);
      draw();
      if (button.closest(".pager").nextElementSibling !== replies) document.getElementById("filters").scrollIntoView();
    });
  }
  for (const button of bar.querySelectorAll("button")) {
    button.addEventListener("click", () => { note = ""; fields.from.value = fields.to.value = button.value; filter(); });
  }
  bar.querySelector("a").addEventListener("click", event => {
    if (!origin?.isConnected) return;
    event.preventDefault();
    origin.focus({preventScroll: true});
    origin.scrollIntoView({block: "center"});
  });
  setUpTokens(replies);
  whenNear(() => { if (!index) filter(); }).observe(document.getElementById("rollouts"));

  return {
    has: stage => stages.includes(stage),
    show(stage, from, to, where) {
      const number = stages.indexOf(stage) - 1;
      if (number < 0) return;
      for (const name of ["domain", "low", "high", "cut"]) fields[name].value = "";
      origin = where;
      note = "";
      const {count, stage: column, step} = read();
      let any = false;
      for (let i = 0; i < count && !any; i++) any = column.of[i] === number && step.values[step.of[i]] >= from && step.values[step.of[i]] <= to;
      if (!any) {
        const near = neighbour(number, from, to, -1) ?? neighbour(number, from, to, 1);
        note = ` (of step ${to} none were kept)`;
        from = to = near;
      }
      fields.stage.value = number;
      fields.from.value = from;
      fields.to.value = to;
      filter();
      document.getElementById("filters").scrollIntoView();
    },
  };
}
