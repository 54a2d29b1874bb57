// Puts the page together: theme, curves, rollouts, and links that open what they lead to.

function setUpTheme() {
  const set = theme => { document.documentElement.dataset.theme = theme; };
  set(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.getElementById("theme").addEventListener("click", () => set(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
}

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target?.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
}

setUpTheme();
const data = JSON.parse(document.getElementById("data").textContent);
setUpCurves(data.stages, setUpRollouts(data.rollouts));
addEventListener("hashchange", openTarget);
openTarget();
