"use strict";
// Sort the table of nodules by the clicked heading: numbers as numbers, empty cells last.
for (const table of document.querySelectorAll("table.study")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = heading.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.sort ?? "";
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", { numeric: true }) : x - y;
        return down ? -order : order;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}

// Filter the rows, and show them as a sheet of pictures.
for (const bar of document.querySelectorAll(".filters")) {
  const table = document.getElementById(bar.dataset.for);
  const rows = [...table.tBodies[0].rows];
  const words = rows.map((row) => row.cells[1].textContent.toLowerCase());
  const control = (name) => bar.querySelector(`[data-filter="${name}"]`);
  function apply() {
    const [text, trust] = [control("text").value.trim().toLowerCase(), control("trust").value];
    let shown = 0;
    rows.forEach((row, place) => {
      const fits = words[place].includes(text) && (!trust || row.dataset.trust === trust)
        && (!control("wrong").checked || "wrong" in row.dataset) && (!control("flagged").checked || "flagged" in row.dataset);
      row.hidden = !fits;
      shown += fits;
    });
    bar.querySelector("[data-shown]").textContent = `${shown} of ${rows.length} nodules`;
  }
  bar.addEventListener("input", apply);
  const sheet = bar.querySelector("[data-sheet]");
  sheet.addEventListener("click", () => {
    sheet.setAttribute("aria-pressed", String(table.classList.toggle("sheet-of-pictures")));
  });
  bar.hidden = false;
  apply();
}
