"use strict";
{
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const overlay = document.getElementById("overlay");
  const allPairs = document.getElementById("all-pairs");
  const revealAll = document.getElementById("reveal-all");
  const theme = document.getElementById("theme");

  const place = (input) => {
    input.closest(".pair").style.setProperty("--at", `${input.value}%`);
    input.setAttribute("aria-valuetext", `${input.value} % base, ${100 - input.value} % erased`);
  };
  const drag = (frame, input, event) => {
    const box = frame.getBoundingClientRect();
    input.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    place(input);
  };
  for (const frame of all(".frame")) {
    const input = frame.querySelector(".slide");
    if (!input) continue;
    input.addEventListener("input", () => place(input));
    frame.addEventListener("pointerdown", (event) => {
      if (event.target.closest("button") || !frame.closest(".overlay")) return;
      event.preventDefault();
      input.focus({ preventScroll: true });
      frame.setPointerCapture(event.pointerId);
      drag(frame, input, event);
    });
    frame.addEventListener("pointermove", (event) => {
      if (frame.hasPointerCapture(event.pointerId)) drag(frame, input, event);
    });
    place(input);
  }
  if (overlay) {
    overlay.addEventListener("click", () => {
      const isOn = document.getElementById("pictures").classList.toggle("overlay");
      overlay.setAttribute("aria-pressed", isOn);
    });
  }
  if (allPairs) {
    allPairs.addEventListener("input", () => {
      for (const input of all(".slide")) {
        input.value = allPairs.value;
        place(input);
      }
    });
  }

  const reveal = (button, shown) => {
    button.setAttribute("aria-pressed", shown);
    button.closest(".frame").classList.toggle("revealed", shown);
  };
  const isPressed = (button) => button.getAttribute("aria-pressed") === "true";
  const buttons = all(".reveal");
  for (const button of buttons) {
    button.hidden = false;
    button.addEventListener("click", () => {
      reveal(button, !isPressed(button));
      revealAll.setAttribute("aria-pressed", buttons.every(isPressed));
    });
  }
  if (revealAll) {
    revealAll.addEventListener("click", () => {
      const shown = !isPressed(revealAll);
      revealAll.setAttribute("aria-pressed", shown);
      for (const button of buttons) reveal(button, shown);
    });
  }

  const root = document.documentElement;
  const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
  const showTheme = () => theme.setAttribute("aria-pressed", isDark());
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  systemDark.addEventListener("change", showTheme);
  theme.hidden = false;
  showTheme();
  for (const controls of all(".controls")) controls.hidden = false;
}
