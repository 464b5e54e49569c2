"use strict";
// What a reader may do with a page that is complete without it: sort and filter tables, point at charts, print.
(() => {
  const make = (tag, properties) => Object.assign(document.createElement(tag), properties);

  // --- tables: a heading is a button, the means stay above -------------------------------------------------
  // Cells that span rows or columns shift what comes after them.
  function placesOfHeadings(table) {
    const taken = [], places = new Map();
    [...table.tHead.rows].forEach((row, r) => {
      let place = 0;
      for (const heading of row.cells) {
        while (taken[r]?.[place]) place++;
        for (let i = 0; i < heading.rowSpan; i++)
          for (let j = 0; j < heading.colSpan; j++) (taken[r + i] ??= [])[place + j] = true;
        if (heading.scope === "col") places.set(heading, place);
        place += heading.colSpan;
      }
    });
    return places;
  }

  // A cell's own words, without the interval below them.
  const words = (row, place) => row.cells[place].firstChild?.textContent.trim() ?? "";
  const number = (text) => parseFloat(text.replace(/[,<]/g, ""));

  function sort(body, place, isAscending) {
    const rows = [...body.rows], isText = rows.every((row) => isNaN(number(words(row, place))));
    const sign = isAscending ? 1 : -1;
    const value = (row) => (isText ? words(row, place) : number(words(row, place)));
    const keyed = rows.map((row) => [value(row), row]);
    // What was not measured stays at the end, whichever way.
    keyed.sort(([a], [b]) =>
      isText ? sign * a.localeCompare(b, "en", { numeric: true })
        : isNaN(a) || isNaN(b) ? isNaN(a) - isNaN(b) : sign * (a - b));
    body.append(...keyed.map(([, row]) => row));
  }

  function makeSortable(table, body) {
    const places = placesOfHeadings(table);
    for (const [heading, place] of places) {
      const button = make("button", { type: "button", title: "Sort by this column" });
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const now = heading.getAttribute("aria-sort");
        const isAscending = now ? now === "descending" : place === 0;
        for (const other of places.keys()) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
        sort(body, place, isAscending);
      });
    }
  }

  function makeFilter(table, body) {
    const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
    const rows = [...body.rows].map((row) => [plain(row.cells[0].textContent), row]);
    const label = make("label", { textContent: `Filter ${table.dataset.filter} ` });
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
    if (table.dataset.filter) makeFilter(table, body);
  }

  // --- charts: a bar, a cell or a point says its number, by pointer and by arrow keys ----------------------
  const tip = make("div", { className: "tip", hidden: true });
  tip.setAttribute("role", "status");
  document.body.append(tip);
  let current = null;

  function hide() {
    current?.classList.remove("on");
    current = null;
    tip.hidden = true;
  }

  function show(mark) {
    if (mark === current) return;
    hide();
    if (!mark) return;
    // The title would come up as a second box.
    const title = mark.querySelector("title");
    if (title) {
      mark.dataset.words = title.textContent;
      title.remove();
    }
    current = mark;
    mark.classList.add("on");
    const [who, ...rest] = mark.dataset.words.split(" · ");
    tip.replaceChildren(make("strong", { textContent: who }), ...rest.map((text) => make("span", { textContent: text })));
    tip.hidden = false;
    const box = mark.getBoundingClientRect();
    const x = box.x + Math.min(box.width, innerWidth) / 2 - tip.offsetWidth / 2;
    const above = box.y - tip.offsetHeight - 6;
    tip.style.left = `${Math.max(8, Math.min(x, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${above > 8 ? above : box.bottom + 6}px`;
  }

  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  // The nearest mark that way; one that lies aside counts as farther.
  function neighbour(marks, from, [dx, dy]) {
    const middle = (mark) => {
      const box = mark.getBoundingClientRect();
      return [box.x + box.width / 2, box.y + box.height / 2];
    };
    const [x, y] = middle(from);
    let best = null, least = Infinity;
    for (const mark of marks) {
      const [a, b] = middle(mark);
      const along = (a - x) * dx + (b - y) * dy;
      const far = along + 4 * Math.abs((a - x) * dy + (b - y) * dx);
      if (along > 0.5 && far < least) [best, least] = [mark, far];
    }
    return best;
  }

  for (const chart of document.querySelectorAll("figure svg")) {
    const marks = [...chart.querySelectorAll("[data-metric]")];
    if (!marks.length) continue;
    chart.tabIndex = 0;
    chart.setAttribute("role", "application");
    chart.setAttribute("aria-label", `${chart.getAttribute("aria-label")}; arrow keys read the values`);
    // Not "pointerover": that also comes when the page is scrolled below a resting mouse.
    chart.addEventListener("pointermove", (event) => show(event.target.closest("[data-metric]")));
    chart.addEventListener("pointerleave", hide);
    chart.addEventListener("blur", hide);
    chart.addEventListener("keydown", (event) => {
      if (event.key === "Escape") hide();
      const way = arrows[event.key];
      if (!way) return;
      event.preventDefault();
      const next = chart.contains(current) ? neighbour(marks, current, way) : marks[0];
      next?.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
      if (next) show(next);
    });
  }
  addEventListener("scroll", () => document.activeElement?.matches("svg") || hide(), { passive: true });

  // --- print: everything that is folded is opened, but the list of all metrics -----------------------------
  let opened = [];
  addEventListener("beforeprint", () => {
    hide();
    opened = [...document.querySelectorAll("details:not([open]):not(.screen)")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => opened.forEach((one) => { one.open = false; }));
})();
