// The curves of one stage at a time; a step that is chosen in them is what the rollouts below are filtered by.

function setUpCurves(stages, chooseSteps) {
  const select = document.getElementById("curve-stage"), panels = document.getElementById("panels");
  for (const stage of stages) select.append(element("option", {value: stage.name}, stage.name));
  if (!stages.length) panels.append(element("p", {class: "empty"}, "No stage has finished a step yet."));
  const draw = () => {
    const stage = stages.find(stage => stage.name === select.value);
    const choose = (after, to) => chooseSteps(stage.name, after + 1, to);
    panels.replaceChildren(...stage.panels.map(panel => chart(panel, choose, Math.max(300, panels.clientWidth - 24))));
  };
  select.addEventListener("change", draw);
  if (stages.length) {
    select.value = (stages.find(stage => stage.running) ?? stages[stages.length - 1]).name;
    draw();
  }
}
