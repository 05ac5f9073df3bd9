// The interpreter ("ast") evaluates Vega's expressions, so that the page's policy needs no eval.
window.normFusionDraw = (place, spec) =>
  vegaEmbed(place, spec, { mode: "vega-lite", renderer: "svg", actions: false, ast: true });
