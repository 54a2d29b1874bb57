// What a prompt and its replies look like. Whatever a model wrote becomes text nodes and nothing else.

// What is full strength, in nats or rewards.
const FULL = {push: 2, logprobs: 6};

// [[stage, reply], ...] -> [[stage, replies to one prompt], ...] of those that follow each other.
function byPrompt(found) {
  const groups = [];
  for (const [stage, reply] of found) {
    const [before, same] = groups[groups.length - 1] ?? [];
    if (before === stage && ["step", "domain", "prompt"].every(key => same[0][key] === reply[key])) same.push(reply);
    else groups.push([stage, [reply]]);
  }
  return groups;
}

function ground(value, colouring) {
  const strength = Math.min(1, Math.abs(value) / FULL[colouring]), gain = colouring === "push" && value > 0;
  return strength > 0.03 ? `rgba(var(--${gain ? "gain" : "loss"}), ${(0.1 + 0.5 * strength).toFixed(2)})` : "";
}

function drawScale(colouring) {
  const scale = document.getElementById("scale"), bar = element("i", {class: `gradient ${colouring}`});
  if (colouring === "push") scale.replaceChildren("made less likely ", bar, " made more likely: RL by a reply's advantage, distillation by the teacher's log-prob minus the student's, token by token; full at 2");
  else if (colouring === "logprobs") scale.replaceChildren("likely ", bar, " unlikely when it was sampled; full at 6 nats");
  else scale.replaceChildren();
}

// A fold whose content is made when it is opened.
function fold(summary, make, open = false) {
  const made = element("details"), filled = () => { if (made.childElementCount === 1) made.append(make()); };
  made.append(summary);
  made.addEventListener("toggle", filled, {once: true});
  if (open) { filled(); made.open = true; }
  return made;
}

function promptCard(stage, replies, colouring) {
  const made = element("article"), head = made.appendChild(element("header")), {prompt, step, domain} = replies[0];
  head.append(element("b", {}, domain ?? "–"), element("span", {}, `${stage}, step ${step}`));
  if (replies.length > 1) head.append(element("span", {}, `${replies.length} replies`));
  const {messages, thinks} = promptParts(prompt ?? "");
  const summary = element("summary"), last = messages[messages.length - 1];
  summary.append("Prompt: ", element("b", {}, (last?.text ?? "").trim().slice(0, 600)));
  made.append(fold(summary, () => {
    const said = element("div", {class: "text"});
    for (const message of messages) said.append(element("span", {class: "role"}, message.role), message.text.trim() + "\n");
    return said;
  }));
  made.append(...replies.map(reply => replyPart(reply, thinks, colouring)));
  return made;
}

function replyPart(reply, thinks, colouring) {
  const made = element("section", {class: "reply"}), head = made.appendChild(element("header"));
  head.append(element("span", {class: "earned"}, `reward ${short(reply.reward)}`));
  if (reply.advantage !== null && reply.advantage !== undefined) {
    head.append(element("span", {}, `advantage ${reply.advantage > 0 ? "+" : ""}${short(reply.advantage)}`));
    if (reply.advantage !== 0) made.style.borderLeftColor = `rgb(var(--${reply.advantage > 0 ? "gain" : "loss"}))`;
  }
  if (reply.gaps) {
    const mean = reply.gaps.reduce((a, b) => a + b, 0) / Math.max(1, reply.length);
    head.append(element("span", {title: "teacher's log-prob minus the student's, mean of a token"}, `teacher ${mean > 0 ? "+" : ""}${short(mean)} a token`));
  }
  head.append(element("span", {}, `${reply.length} tokens${reply.finish_reason === "length" ? ", cut" : ""}`));
  if (reply.trained === false) head.append(element("span", {class: "badge warn"}, "left out of the loss"));

  const {thought, answer, closed} = replyParts(reply, values(reply, colouring), thinks);
  const tokens = (parts, kind) => {
    const text = element("div", {class: `text ${kind}`});
    text.append(...parts.map(part => token(part, colouring)));
    return text;
  };
  if (thought.some(part => part.text.trim())) made.append(fold(element("summary", {}, closed ? `Thought (${thought.length} ${thought.length === 1 ? "token" : "tokens"})` : "Thought, never ended"), () => tokens(thought, "thought"), !closed));
  if (answer.length || closed) made.append(answer.length ? tokens(answer, "answer") : element("div", {class: "text answer empty"}, "no answer after the thought"));
  made.append(fold(element("summary", {}, "Row and verdict"), () => element("pre", {}, JSON.stringify({verdict: reply.verdict, row: reply.row}, null, 1))));
  return made;
}

// The number that colours each token. push: what the step made more or less likely, nothing of a reply that was left out of it.
function values(reply, colouring) {
  if (colouring === "logprobs") return reply.logprobs;
  if (colouring !== "push" || reply.trained === false) return undefined;
  return reply.gaps ?? (reply.advantage === null || reply.advantage === undefined ? undefined : (reply.pieces ?? []).map(() => reply.advantage));
}

// The chat's messages, and whether the reply begins inside a thought.
function promptParts(text) {
  const messages = [], turn = /<\|im_start\|>(\w+)\n?([\s\S]*?)(?:<\|im_end\|>\n?|$)/g;
  for (const [, role, said] of text.matchAll(turn)) if (said.trim() && !/^<think>(<\/think>)?$/.test(said.trim())) messages.push({role, text: said});
  return {messages: messages.length ? messages : [{role: "prompt", text}], thinks: /<think>\s*$/.test(text)};
}

function replyParts(reply, values, thinks) {
  const parts = (reply.pieces ?? []).map((text, i) => ({text, value: values?.[i], logprob: reply.logprobs?.[i], gap: reply.gaps?.[i]}));
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

const about = new WeakMap(); // a token's element -> what its tip says

// One token: text, with a ground by its value: green where it is made more likely, orange where less.
function token(part, colouring) {
  const {text, value, logprob, gap} = part;
  if (logprob === undefined && value === undefined) return document.createTextNode(text);
  const made = element("span", /^<\|?[\w/]+\|?>$/.test(text) ? {class: "special"} : {}, text);
  if (value !== undefined && value !== null && colouring) made.style.background = ground(value, colouring);
  about.set(made, [`log-prob ${short(logprob)}`, ...(gap === undefined ? [] : [`teacher ${gap > 0 ? "+" : ""}${short(gap)}`])]);
  return made;
}

function setUpTokens(root) {
  root.addEventListener("pointerover", event => {
    const said = about.get(event.target);
    if (!said) { hideTip(); return; }
    const box = event.target.getClientRects()[0];
    showTip(box.left + box.width / 2, box.top, element("code", {}, JSON.stringify(event.target.textContent)), ...said.map(line => element("span", {}, line)));
  });
  root.addEventListener("pointerleave", hideTip);
}
