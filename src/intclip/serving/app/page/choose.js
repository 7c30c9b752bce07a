// A choice among buttons: the mouse, or the arrow keys to move and Enter to take.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-choice]");
  if (button) trigger("click", { choice: Number(button.dataset.choice) });
});
element.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const buttons = Array.from(element.querySelectorAll("[data-choice]"));
  const next = buttons[buttons.indexOf(document.activeElement) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
});
