// Charts are data in #specs. The interpreter ("ast") evaluates Vega's expressions, so the page's policy needs no eval.
const specs = JSON.parse(document.getElementById("specs").textContent);
for (const [id, spec] of Object.entries(specs)) {
  const place = document.getElementById(id);
  vegaEmbed(place, spec, { mode: "vega-lite", renderer: "svg", actions: false, ast: true }).catch((error) => {
    place.textContent = `This plot could not be drawn (${error.message}); the table above holds its figures.`;
  });
}
