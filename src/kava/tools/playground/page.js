"use strict";
// What a page asks, by page and number.
const kavaPage = Math.random().toString(36).slice(2);
let kavaTurns = 0;
window.kavaTurn = () => `${kavaPage} ${++kavaTurns}`;
// The cells of the grid and of the map: pointing, tapping or the arrow keys tell what is in one; in the map, a click or Enter takes its setting.
const cellOf = (event) => event.target.closest?.(".kava-table td");
const tell = (cell) => {
  const tip = cell.closest(".kava-table").querySelector(".kava-tip");
  if (tip.textContent !== cell.dataset.tip) tip.textContent = cell.dataset.tip;
};
const setSlider = (name, value) => {
  const input = document.querySelector(`#${name} input[type=number]`);
  if (!input || input.disabled) return;
  input.value = value;
  input.dispatchEvent(new Event("input", { bubbles: true }));
  input.dispatchEvent(new Event("blur"));
};
const take = (cell) => {
  if (!cell.dataset.m) return;
  setSlider("latents", cell.dataset.m);
  setSlider("iterations", cell.dataset.t);
};
// The map is drawn anew with every measurement; the cell that has the focus keeps it.
let held = null;
const hold = (event) => { held = cellOf(event)?.dataset ?? null; };
document.addEventListener("focusin", hold);
document.addEventListener("pointerdown", hold);
const regain = () => {
  if (!held?.m || document.activeElement !== document.body) return;
  document.querySelector(`.kava-table td[data-m="${held.m}"][data-t="${held.t}"]`)?.focus({ preventScroll: true });
};
for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, (event) => cellOf(event) && tell(cellOf(event)));
document.addEventListener("click", (event) => {
  const cell = cellOf(event);
  if (cell) { tell(cell); take(cell); }
});
const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
document.addEventListener("keydown", (event) => {
  const cell = cellOf(event);
  if (!cell) return;
  if (event.key === "Enter" || event.key === " ") { take(cell); event.preventDefault(); }
  const [down, right] = MOVES[event.key] ?? [];
  if (down === undefined) return;
  event.preventDefault();
  const next = cell.closest("table").rows[cell.parentElement.rowIndex + down]?.cells[cell.cellIndex + right];
  if (next?.tagName !== "TD") return;
  cell.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
// Answers are shown while the question and the sliders are those that they were given for. In the map, the sliders' setting is marked; of
// each table, one cell takes part in the order of the Tab key. Neither a chosen example nor a reset slider tells the page, so it looks.
const inputValue = (selector) => document.querySelector(selector)?.value ?? "";
const refresh = () => {
  const [m, t] = ["latents", "iterations"].map((name) => inputValue(`#${name} input[type=number]`));
  const asked = `${m} ${t} ${inputValue("#question textarea").trim().split(/\s+/).join(" ")}`;
  for (const shown of document.querySelectorAll(".kava-shown")) {
    shown.classList.toggle("fresh", shown.dataset.asked === asked);
    shown.classList.toggle("stale", shown.dataset.asked !== asked);
  }
  for (const cell of document.querySelectorAll(".kava-table td[data-m]"))
    cell.classList.toggle("current", cell.dataset.m === m && cell.dataset.t === t);
  for (const table of document.querySelectorAll(".kava-table table"))
    if (!table.querySelector('td[tabindex="0"]')) (table.querySelector("td.current") ?? table.querySelector("td")).tabIndex = 0;
  regain();
};
new MutationObserver(refresh).observe(document.documentElement, { childList: true, subtree: true });
setInterval(refresh, 150);
