// What the scripts of all explorers share. Each card on a page brings this file along, so it only
// declares a function.
/* exported startExplorers */

/**
 * Start the cards of one kind on the page that have not been started, each once, however often it
 * is drawn. They are looked up by their kind, since notebook front ends run a script elsewhere
 * than where it stood.
 *
 * kind: value of the cards' attribute data-explorer.
 * start: function of {element, data, part, write}: the card's element; its data; part(name), the
 *   element in it with that data-part; write(name, text), which makes a text that element's own.
 */
function startExplorers(kind, start) {
  const cards = `.explorer[data-explorer="${kind}"]:not([data-ready])`;
  for (const element of document.querySelectorAll(cards)) {
    element.dataset.ready = "yes";
    const json = element.querySelector("script[type='application/json']").textContent;
    const part = (name) => element.querySelector(`[data-part="${name}"]`);
    const write = (name, text) => {
      // A live region is read out again even if the same text is written into it.
      if (part(name).textContent !== text) part(name).textContent = text;
    };
    start({ element, data: JSON.parse(json), part, write });
    part("live").hidden = false;
  }
}
