"use strict";
// Sorting and filtering of tables, and printing. The page is complete without this script.
(() => {
  const make = (tag, properties) => Object.assign(document.createElement(tag), properties);
  const number = (text) => parseFloat(text.replace(/[,<]/g, "").replace("−", "-"));
  // The text of a cell, without the interval below it.
  const words = (row, place) => row.cells[place].firstChild?.textContent.trim() ?? "";

  function sort(body, place, isAscending) {
    const rows = [...body.rows], isText = rows.every((row) => isNaN(number(words(row, place))));
    const sign = isAscending ? 1 : -1;
    const keyed = rows.map((row) => [isText ? words(row, place) : number(words(row, place)), row]);
    // Values that were not measured stay at the end in both directions.
    keyed.sort(([a], [b]) =>
      isText ? sign * a.localeCompare(b, "en", { numeric: true })
        : isNaN(a) || isNaN(b) ? isNaN(a) - isNaN(b) : sign * (a - b));
    body.append(...keyed.map(([, row]) => row));
  }

  function makeSortable(table, body) {
    const all = [...[...table.tHead.rows].at(-1).cells];  // the groups above them cannot be sorted
    all.forEach((heading, place) => {
      const button = make("button", { type: "button" });
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const now = heading.getAttribute("aria-sort");
        const isAscending = now ? now === "descending" : place === 0;
        for (const other of all) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
        sort(body, place, isAscending);
      });
    });
  }

  function makeFilter(table, body) {
    const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
    const rows = [...body.rows].map((row) => [plain(row.textContent), row]);
    const label = make("label", { textContent: "Filter rows " });
    const box = make("input", { type: "search", autocomplete: "off", spellcheck: false });
    const count = make("output", { textContent: `${rows.length} shown` });
    box.addEventListener("input", () => {
      const wanted = plain(box.value.trim());
      for (const [text, row] of rows) row.hidden = !text.includes(wanted);
      const shown = rows.filter(([, row]) => !row.hidden).length;
      count.textContent = wanted ? `${shown} of ${rows.length} shown` : `${rows.length} shown`;
    });
    label.append(box);
    const line = make("p", { className: "filter" });
    line.append(label, " ", count);
    table.parentElement.before(line);
  }

  for (const table of document.querySelectorAll("table")) {
    const body = table.querySelector("tbody.rows");
    if (!body || body.rows.length < 2) continue;
    makeSortable(table, body);
    if ("filter" in table.dataset) makeFilter(table, body);
  }

  // Printing opens all folded parts except the list of all metrics.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open]):not(.screen)")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => opened.forEach((one) => { one.open = false; }));
})();
