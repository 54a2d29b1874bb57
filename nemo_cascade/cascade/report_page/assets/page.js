// Puts the page together: theme, sections in the navigation, curves, rollouts, and links that open what they lead to.

function setUpTheme() {
  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", () => { root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark"; });
}

// Marks the section that is looked at.
function setUpNavigation() {
  const links = new Map([...document.querySelectorAll("nav a")].map(link => [link.hash.slice(1), link]));
  const observer = new IntersectionObserver(entries => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const [id, link] of links) if (id === entry.target.id) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    }
  }, {rootMargin: "-25% 0px -70% 0px"});
  for (const section of document.querySelectorAll("section")) observer.observe(section);
}

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target?.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
}

setUpTheme();
setUpNavigation();
const showCurves = setUpCurves(setUpRollouts());
for (const link of document.querySelectorAll("a[data-stage]")) link.addEventListener("click", () => showCurves(link.dataset.stage));
addEventListener("hashchange", openTarget);
openTarget();
