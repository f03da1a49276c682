// The rollouts of one problem, token by token, coloured by the weights that one objective gives.
// data: {problems, methods, labels}, as `rollout_browser` describes them; labels: of the methods.
/* global startExplorers */

startExplorers("rollouts", ({ element, data, part, write }) => {
  const [problemSelect, methodSelect] = element.querySelectorAll("select");
  const NEGATIVE = "224, 130, 20"; // orange
  const POSITIVE = "128, 115, 172"; // purple
  const STRONGEST = 0.6; // opacity of the largest weight, dark text on it stays readable

  function append(parent, tag, text, className) {
    const child = document.createElement(tag);
    if (className) child.className = className;
    child.textContent = text;
    parent.appendChild(child);
    return child;
  }

  function summary(completion, weights) {
    const grade = completion.reward > 0 ? "Right" : "Wrong";
    const range = weights
      ? `weights from ${Math.min(...weights).toFixed(2)} to ${Math.max(...weights).toFixed(2)}`
      : "not used by this objective";
    return `${grade}, reward ${completion.reward}; ${range}.`;
  }

  function show() {
    const problem = data.problems[problemSelect.selectedIndex];
    const method = data.methods[methodSelect.selectedIndex];
    write("question", problem.question);
    write("answer", problem.answer);
    const used = problem.completions.map((each) => each.weights[method]).filter(Boolean);
    const largest = Math.max(1e-9, ...used.flat().map(Math.abs));
    const list = part("completions");
    list.replaceChildren();
    problem.completions.forEach((completion, number) => {
      const weights = completion.weights[method];
      append(list, "p", `${number + 1}. ${summary(completion, weights)}`, "heading");
      const line = append(list, "p", "", "tokens");
      completion.tokens.forEach((text, index) => {
        const token = append(line, "span", text);
        if (!weights) return;
        const colour = weights[index] < 0 ? NEGATIVE : POSITIVE;
        const opacity = ((STRONGEST * Math.abs(weights[index])) / largest).toFixed(3);
        token.style.backgroundColor = `rgba(${colour}, ${opacity})`;
        token.title = weights[index].toFixed(3);
      });
    });
  }

  data.problems.forEach((problem, number) => {
    append(problemSelect, "option", `${number + 1}: ${problem.question.slice(0, 60)}…`);
  });
  for (const label of data.labels) append(methodSelect, "option", label);
  problemSelect.addEventListener("change", show);
  methodSelect.addEventListener("change", show);
  show();
});
