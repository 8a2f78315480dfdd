"use strict";
// What all pages share: the theme, copying, sorting tables, and looking at a picture larger.
const say = (text) => {
  const place = document.getElementById("said");
  place.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { place.textContent = ""; }, 2500);
};

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

const copyText = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // not allowed here: select it in a field of its own
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  say("Copied");
};

const sortBy = (header) => {
  const table = header.closest("table");
  const column = header.cellIndex;
  const descending = header.getAttribute("aria-sort") === "ascending";
  const value = (row) => {
    const cell = row.cells[column];
    const text = cell.dataset.sort ?? cell.textContent.trim();
    return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
  };
  const compare = (a, b) => {
    if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
    return typeof a === "number" ? -1 : 1;
  };
  const rows = [...table.tBodies[0].rows].sort((a, b) => compare(value(a), value(b)));
  if (descending) rows.reverse();
  table.tBodies[0].append(...rows);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.copy !== undefined) copyText(button.dataset.copy);
  const header = button.closest("table.sortable thead th");
  if (header) sortBy(header);
  if (button.dataset.view !== undefined) {
    const viewer = document.getElementById("viewer");
    const picture = button.querySelector("img");
    viewer.querySelector("img").src = picture.src;
    viewer.querySelector("img").alt = picture.alt;
    viewer.querySelector("p").textContent = button.dataset.view;
    viewer.showModal();
  }
});
