"use strict";
// Sort the table of labels by a column: numbers from high to low first, names from A to Z.
const body = document.querySelector("#classes tbody");
document.querySelectorAll("#classes thead th").forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
  const falling = head.getAttribute("aria-sort") === (column ? "descending" : "ascending") ? !column : Boolean(column);
  const value = (row) => (column ? Number(row.cells[column].dataset.value) : row.cells[0].textContent);
  const sign = falling ? -1 : 1;
  const compare = (a, b) => (column ? (Number.isNaN(value(a)) - Number.isNaN(value(b))) || sign * (value(a) - value(b)) : sign * value(a).localeCompare(value(b)));
  body.append(...[...body.rows].sort(compare));
  head.parentNode.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
}));
