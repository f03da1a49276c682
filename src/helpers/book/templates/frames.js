// One of several pictures, chosen by a slider or from a list.
// data: [{label, alt, image}], `image` as a data: address.
/* global startExplorers */

startExplorers("frames", ({ element, data, part, write }) => {
  const control = element.querySelector("select, input");

  function show() {
    const index = control.tagName === "SELECT" ? control.selectedIndex : Number(control.value);
    const frame = data[index];
    part("image").src = frame.image;
    part("image").alt = frame.alt;
    write("label", frame.label);
    if (control.type === "range") control.setAttribute("aria-valuetext", frame.label);
  }

  control.addEventListener("input", show);
  show();
});
