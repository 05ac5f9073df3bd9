"use strict";
// Tables that are lists can be sorted: by number, where a cell begins with one, with its unit.
const UNITS = { ns: 1e-6, "µs": 1e-3, ms: 1, s: 1e3, min: 6e4, KiB: 2 ** -10, MiB: 1, GiB: 2 ** 10 };
const sortable = (cell) => {
  if (!cell) return [2, ""]; // one that is wide stands in for it
  const text = (cell.dataset.v ?? cell.textContent).trim();
  const found = /^[±<>~]?(-?[\d,]*\.?\d+(?:e[-+]?\d+)?)\s*([A-Za-zµ]*)/.exec(text);
  if (!found || /^\d{4}-/.test(text)) return [1, text];
  return [0, parseFloat(found[1].replaceAll(",", "")) * (UNITS[found[2]] ?? 1)];
};
const compareKeys = (a, b) => a[0] - b[0] || (a[1] < b[1] ? -1 : a[1] > b[1] ? 1 : 0);
for (const table of document.querySelectorAll("table.sortable")) {
  // Of a head of two rows those count that lead a column: whoever spans both rows comes first.
  const [upper, lower] = table.tHead.rows;
  const heads = lower ? [...[...upper.cells].filter((head) => head.rowSpan === 2), ...lower.cells] : [...upper.cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      for (const body of table.tBodies) {
        // A group is sorted by itself: its title stays above it, and a row keeps the one that explains it.
        const rows = [];
        for (const row of body.rows) {
          if (row.classList.contains("why")) rows[rows.length - 1].push(row);
          else if (!row.classList.contains("case")) rows.push([row]);
        }
        const keyed = rows.map((those) => [sortable(those[0].cells[column]), those]);
        keyed.sort((a, b) => (falling ? compareKeys(b[0], a[0]) : compareKeys(a[0], b[0])));
        body.append(...keyed.flatMap((pair) => pair[1]));
      }
    });
  });
}
// Plots are data in #specs; what draws them is one file that all pages share, loaded where a plot comes into sight.
const specs = document.getElementById("specs");
if (specs) {
  const data = JSON.parse(specs.textContent);
  const failed = (place, error) => {
    place.textContent = `This plot could not be drawn (${error.message}); the tables hold its figures.`;
  };
  let loading;
  const charts = () =>
    (loading ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `${specs.dataset.up}assets/charts.js`;
      script.onload = resolve;
      script.onerror = () => reject(new Error("assets/charts.js is missing"));
      document.head.append(script);
    }));
  const draw = (place) =>
    charts()
      .then(() => normFusionDraw(place, data[place.id]))
      .then(() => place.querySelector("svg").setAttribute("aria-hidden", "true")) // the place itself is described
      .catch((error) => failed(place, error));
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        seen.unobserve(entry.target);
        draw(entry.target);
      }
    },
    { rootMargin: "600px" },
  );
  for (const id of Object.keys(data)) {
    const place = document.getElementById(id);
    const height = place.dataset.height;
    if (height) place.style.minHeight = `${height}px`;
    seen.observe(place);
  }
  addEventListener("beforeprint", () => Object.keys(data).forEach((id) => draw(document.getElementById(id))));
}
const place = (hash) => {
  try {
    return hash && document.getElementById(decodeURIComponent(hash.slice(1)));
  } catch {
    return null; // a % that stands for nothing
  }
};
const opened = () => {
  const target = place(location.hash);
  const folded = target && target.closest("details");
  if (folded) {
    folded.open = true;
    target.scrollIntoView();
  }
};
addEventListener("hashchange", opened);
opened();
