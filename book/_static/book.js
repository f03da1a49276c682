// An equation wider than the page is drawn smaller, down to three quarters; a wider one scrolls.
function fitEquations() {
  const equations = [...document.querySelectorAll("div.math mjx-container")];
  equations.forEach(each => { each.style.fontSize = ""; });
  const ratios = equations.map(each => each.clientWidth / each.scrollWidth);  // all read before any is changed, so that the page is laid out once
  equations.forEach((each, place) => { if (ratios[place] < 1) each.style.fontSize = `${Math.max(0.75, ratios[place] - 0.01) * 100}%`; });
}
window.addEventListener("resize", fitEquations);

// The theme makes what scrolls reachable by keyboard when the page is parsed; tables with mathematics are wider once that is drawn.
window.addEventListener("load", () => {
  const drawn = window.MathJax && MathJax.startup && MathJax.startup.promise;
  Promise.resolve(drawn).then(() => window.dispatchEvent(new Event("resize")));
});

// The dark theme gives some outputs a margin, which may make them scroll.
new MutationObserver(() => window.dispatchEvent(new Event("resize"))).observe(document.documentElement, { attributeFilter: ["data-theme"] });
