// The theme makes what scrolls reachable by keyboard when the page is parsed; tables with mathematics are wider once that is drawn.
window.addEventListener("load", () => {
  const drawn = window.MathJax && MathJax.startup && MathJax.startup.promise;
  Promise.resolve(drawn).then(() => window.dispatchEvent(new Event("resize")));
});

// The dark theme gives some outputs a margin, which may make them scroll.
new MutationObserver(() => window.dispatchEvent(new Event("resize"))).observe(document.documentElement, { attributeFilter: ["data-theme"] });
