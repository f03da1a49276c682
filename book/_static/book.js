// An equation wider than the page is drawn smaller, down to three quarters; a wider one scrolls.
function fitEquations() {
  for (const equation of document.querySelectorAll("div.math mjx-container")) {
    equation.style.fontSize = "";
    const ratio = equation.clientWidth / equation.scrollWidth;
    if (ratio < 1) equation.style.fontSize = `${Math.max(0.75, ratio - 0.01) * 100}%`;
  }
}
window.addEventListener("resize", fitEquations);

// The theme makes what scrolls reachable by keyboard when the page is parsed; tables with mathematics are wider once that is drawn.
window.addEventListener("load", () => {
  const drawn = window.MathJax && MathJax.startup && MathJax.startup.promise;
  Promise.resolve(drawn).then(() => window.dispatchEvent(new Event("resize")));
});

// The dark theme gives some outputs a margin, which may make them scroll.
new MutationObserver(() => window.dispatchEvent(new Event("resize"))).observe(document.documentElement, { attributeFilter: ["data-theme"] });
