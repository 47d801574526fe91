"use strict";

// Sorting: a button in each heading. A cell is sorted by its data-value, else by its text; empty ones go last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    if (heading.classList.contains("fixed")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const rising = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
      sortRows(table.tBodies[0], column, rising);
    });
  });
}

function sortRows(body, column, rising) {
  const key = (row) => {
    const cell = row.cells[column];
    if (cell.dataset.value === undefined) return cell.textContent.trim().toLowerCase();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  const rows = [...body.rows].map((row) => [key(row), row]);
  rows.sort(([one], [other]) => {
    if (one === null || other === null) return (one === null) - (other === null);
    const order = typeof one === "string" ? one.localeCompare(other) : one - other;
    return rising ? order : -order;
  });
  body.append(...rows.map(([, row]) => row));
}

// Filtering: artists in the table and their galleries alike.
const filter = document.getElementById("filter");
const odd = document.getElementById("odd");
const folded = (text) => text.normalize("NFD").replace(/\p{Mn}/gu, "").toLowerCase().replaceAll("_", " ");

function filterArtists() {
  const wanted = folded(filter.value.trim());
  const shown = new Set();
  for (const row of document.getElementById("matrix").tBodies[0].rows) {
    const fits = folded(row.dataset.artist).includes(wanted) && !(odd.checked && row.dataset.whole === "yes");
    row.hidden = !fits;
    if (fits) shown.add(row.dataset.artist);
  }
  for (const gallery of document.querySelectorAll(".gallery")) {
    gallery.hidden = !shown.has(gallery.dataset.artist);
  }
  const all = document.getElementById("matrix").tBodies[0].rows.length;
  document.getElementById("count").value = shown.size === all ? `${all} artists` : `${shown.size} of ${all} artists`;
}
filter.addEventListener("input", filterArtists);
odd.addEventListener("change", filterArtists);
filter.form.addEventListener("submit", (event) => event.preventDefault());

// What a picture is, on hover and focus; Escape hides it.
const tip = document.getElementById("tip");
const shotOf = (event) => event.target instanceof Element && event.target.closest(".shot");

function showTip(event) {
  const shot = shotOf(event);
  if (!shot) return;
  tip.textContent = shot.firstElementChild.alt;
  tip.hidden = false;
  const place = shot.getBoundingClientRect();
  const left = Math.min(place.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left) + scrollX}px`;
  tip.style.top = `${place.bottom + 6 + scrollY}px`;
}
const hideTip = () => { tip.hidden = true; };
document.addEventListener("pointerover", showTip);
document.addEventListener("focusin", showTip);
document.addEventListener("pointerout", (event) => { if (shotOf(event)) hideTip(); });
document.addEventListener("focusout", hideTip);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

// Enlarging: a dialog, in which the arrow keys go along the row.
const viewer = document.getElementById("viewer");
let row = [];
let at = 0;

function show(place) {
  at = (place + row.length) % row.length;
  const caption = row[at].firstElementChild.alt;
  const image = document.getElementById("viewer-image");
  image.src = row[at].dataset.large;
  image.alt = caption;
  document.getElementById("viewer-caption").textContent = caption;
  document.getElementById("place").textContent = `${at + 1} of ${row.length}`;
}
document.addEventListener("click", (event) => {
  const shot = shotOf(event);
  if (!shot) return;
  row = [...shot.closest("tr").querySelectorAll(".shot")];
  show(row.indexOf(shot));
  hideTip();
  viewer.showModal();
});
document.getElementById("previous").addEventListener("click", () => show(at - 1));
document.getElementById("next").addEventListener("click", () => show(at + 1));
document.getElementById("close").addEventListener("click", () => viewer.close());
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
viewer.addEventListener("close", () => row[at]?.focus());
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") show(at - 1);
  if (event.key === "ArrowRight") show(at + 1);
});

// On paper everything is open.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
