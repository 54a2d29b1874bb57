// Kept replies: chosen by an index of all of them, shown ten at a time, their pages loaded when one of them is shown.
// Whatever a model wrote becomes text nodes and nothing else.

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

function setUpRollouts({index, names, firsts}) {
  const form = document.getElementById("filters");
  if (!form) return () => {};
  const count = index.stage.length, replies = document.getElementById("replies"), range = document.getElementById("range");
  for (const kind of ["stage", "domain"]) {
    names[kind].forEach((name, number) => form.elements[kind].append(element("option", {value: number}, name ?? "–")));
  }
  let chosen = [], page = 0, drawn = 0;

  const bound = (name, otherwise) => form.elements[name].value === "" ? otherwise : Number(form.elements[name].value);
  const filter = () => {
    const [stage, domain, cut, order] = ["stage", "domain", "cut", "order"].map(name => form.elements[name].value);
    const from = bound("from", -Infinity), to = bound("to", Infinity), low = bound("low", -Infinity), high = bound("high", Infinity);
    const all = low === -Infinity && high === Infinity;
    chosen = [];
    for (let i = 0; i < count; i++) {
      if ((stage === "" || index.stage[i] === +stage) && (domain === "" || index.domain[i] === +domain) && (cut === "" || index.cut[i] === +cut) &&
        index.step[i] >= from && index.step[i] <= to && (all || (index.reward[i] !== null && index.reward[i] >= low && index.reward[i] <= high))) chosen.push(i);
    }
    if (order !== "") {
      const column = index[order.replace("-", "")], sign = order.startsWith("-") ? 1 : -1;
      // Those without a value last, whichever way.
      chosen.sort((a, b) => (column[a] === null) - (column[b] === null) || sign * (column[a] - column[b]) || a - b);
    }
    page = 0;
    draw();
  };

  const pageOf = i => { // the last page whose first reply is not after i
    let low = 0, high = firsts.length - 1;
    while (low < high) { const middle = (low + high + 1) >> 1; if (firsts[middle] <= i) low = middle; else high = middle - 1; }
    return low;
  };
  const draw = async () => {
    const turn = ++drawn, first = page * SHOWN, here = chosen.slice(first, first + SHOWN);
    range.textContent = chosen.length ? `${first + 1}–${first + here.length} of ${chosen.length.toLocaleString("en")}` : "none is like that";
    for (const button of document.querySelectorAll("[data-page]")) {
      button.disabled = button.dataset.page < 0 ? page === 0 : first + SHOWN >= chosen.length;
    }
    try {
      const found = await Promise.all(here.map(async i => [i, (await loadPage(pageOf(i)))[i - firsts[pageOf(i)]]]));
      if (turn !== drawn) return; // another choice was made meanwhile
      replies.replaceChildren(...found.map(([i, reply]) => card(names.stage[index.stage[i]], reply, form.elements.colour.value)));
    } catch (error) {
      replies.replaceChildren(element("p", {class: "problem"}, `${error.message} cannot be loaded: it belongs beside this page. If the report was written again, reload.`));
    }
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  for (const button of document.querySelectorAll("[data-page]")) {
    button.addEventListener("click", () => { page += Number(button.dataset.page); draw(); });
  }
  filter();
  return (stage, from, to) => {
    if (!names.stage.includes(stage)) return;
    form.reset();
    setTimeout(() => {
      form.elements.stage.value = names.stage.indexOf(stage);
      form.elements.from.value = from;
      form.elements.to.value = to;
      filter();
      document.getElementById("rollouts").scrollIntoView();
    });
  };
}

function card(stage, reply, colouring) {
  const made = element("article", {class: "reply"}), head = made.appendChild(element("header"));
  head.append(element("span", {class: "earned"}, `reward ${short(reply.reward)}`));
  if (reply.advantage !== null && reply.advantage !== undefined) head.append(element("span", {}, `advantage ${short(reply.advantage)}`));
  if (reply.gaps) {
    const mean = reply.gaps.reduce((a, b) => a + b, 0) / Math.max(1, reply.length);
    head.append(element("span", {title: "teacher's log-prob minus the student's, mean of a token"}, `teacher ${mean > 0 ? "+" : ""}${short(mean)} a token`));
  }
  head.append(element("span", {}, `${reply.length} tokens${reply.finish_reason === "length" ? ", cut" : ""}`));
  head.append(element("span", {}, reply.domain), element("span", {}, `${stage}, step ${reply.step}`));
  if (reply.trained === false) head.append(element("span", {class: "badge warn"}, "left out of the loss"));

  const {messages, thinks} = promptParts(reply.prompt ?? "");
  const last = messages[messages.length - 1];
  const prompt = made.appendChild(element("details"));
  const summary = prompt.appendChild(element("summary"));
  summary.append("Prompt: ", element("b", {}, (last?.text ?? "").trim().slice(0, 300)));
  const said = prompt.appendChild(element("div", {class: "text"}));
  for (const message of messages) said.append(element("span", {class: "role"}, message.role), message.text.trim() + "\n");

  const values = colouring ? reply[colouring] ?? (colouring === "gaps" ? null : undefined) : null;
  const {thought, answer, closed} = replyParts(reply, values, thinks);
  if (thought.length) {
    const folded = made.appendChild(element("details", closed ? {} : {open: ""}));
    folded.append(element("summary", {}, closed ? `Thought (${thought.length} tokens)` : "Thought, never ended"));
    folded.appendChild(element("div", {class: "text thought"})).append(...thought.map(part => token(part, colouring)));
  }
  if (answer.length || closed) made.appendChild(element("div", {class: "text answer"})).append(...answer.map(part => token(part, colouring)));

  const more = made.appendChild(element("details"));
  more.append(element("summary", {}, "Row and verdict"), element("pre", {}, JSON.stringify({verdict: reply.verdict, row: reply.row}, null, 1)));
  return made;
}

// The chat's messages, and whether the reply begins inside a thought.
function promptParts(text) {
  const messages = [], turn = /<\|im_start\|>(\w+)\n?([\s\S]*?)(?:<\|im_end\|>\n?|$)/g;
  for (const [, role, said] of text.matchAll(turn)) if (said.trim() && !/^<think>(<\/think>)?$/.test(said.trim())) messages.push({role, text: said});
  return {messages: messages.length ? messages : [{role: "prompt", text}], thinks: /<think>\s*$/.test(text)};
}

function replyParts(reply, values, thinks) {
  const parts = (reply.pieces ?? []).map((text, i) => ({text, value: values?.[i]}));
  if (reply.left_out) parts.splice(reply.left_out_at, 0, {text: `\n[... ${reply.left_out} tokens are left out here ...]\n`});
  const end = parts.findIndex(part => part.text.includes("</think>"));
  const begins = thinks || (parts[0]?.text ?? "").startsWith("<think>");
  if (!begins && end < 0) return {thought: [], answer: parts, closed: true};
  if (end < 0) return {thought: parts, answer: [], closed: false};
  const [before, after] = parts[end].text.split(/<\/think>([\s\S]*)/);
  const thought = parts.slice(0, end), answer = parts.slice(end + 1);
  if (before) thought.push({...parts[end], text: before});
  if (after) answer.unshift({...parts[end], text: after});
  while (answer.length && !answer[0].text.trim()) answer.shift();
  if (answer.length) answer[0] = {...answer[0], text: answer[0].text.trimStart()};
  return {thought, answer, closed: true};
}

// One token: text, with a ground by its value. Gaps: green where the teacher likes it more, orange where less.
function token({text, value}, colouring) {
  const special = /^<\|?[\w/]+\|?>$/.test(text);
  if (!special && (value === undefined || value === null || !colouring)) return document.createTextNode(text);
  const made = element("span", special ? {class: "special"} : {}, text);
  if (value !== undefined && value !== null && colouring) {
    const gain = colouring === "gaps" && value > 0, strength = Math.min(1, Math.abs(value) / (colouring === "gaps" ? 2 : 6));
    if (strength > 0.03) made.style.background = `rgba(var(--${gain ? "gain" : "loss"}), ${(0.6 * strength).toFixed(2)})`;
    made.title = `${colouring === "gaps" ? "teacher minus student" : "log-prob"} ${short(value)}`;
  }
  return made;
}
