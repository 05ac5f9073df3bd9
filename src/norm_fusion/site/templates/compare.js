"use strict";
// Two runs, row by row: what evidence/compare.py and evidence/verdicts.py do, in the browser. Their numbers are in
// #facts, what either run is doubted by is in its data; all texts are data, and become nothing but text.
{
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const at = (id) => document.getElementById(id);
  const roles = new Map(facts.roles);
  const became = new Map(facts.labels);
  const columns = [...at("pairs").tHead.rows[0].cells];
  const make = (tag, kind, ...inside) => {
    const node = document.createElement(tag);
    if (kind) node.className = kind;
    node.append(...inside); // strings become text
    return node;
  };
  const link = (href, inside) => {
    const node = make("a", "", inside);
    node.href = href;
    return node;
  };

  // Figures as report/rows.py writes them.
  const duration = (ms) => {
    const units = [[1e-6, "ns"], [1e-3, "µs"], [1, "ms"]];
    const [scale, unit] = units.find(([scale]) => ms / scale < 999.5) ?? [1e3, "s"];
    return `${(ms / scale).toPrecision(3)} ${unit}`;
  };
  const percent = (share, places) => `${(100 * share).toFixed(places)}%`;
  const halfWidth = (low, high) => Math.expm1(Math.log(high / low) / 2);
  const giveOrTake = (low, high) => {
    const width = halfWidth(low, high);
    return width < 0.1 ? `±${percent(width, 1)}` : width < 1 ? `±${percent(width, 0)}` : ">±100%";
  };

  // A run's data, handed over by the script that holds them.
  const arrived = new Map();
  const asked = new Map();
  globalThis.normFusionRun = (run) => arrived.set(document.currentScript, run);
  const load = (slug) => {
    if (!asked.has(slug)) {
      asked.set(slug, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `${slug}.js`;
        script.onload = () => {
          if (arrived.has(script)) resolve(read(slug, arrived.get(script)));
          else reject(new Error(`compare/${slug}.js is damaged`));
        };
        script.onerror = () => reject(new Error(`compare/${slug}.js is missing`));
        document.head.append(script);
      }));
    }
    return asked.get(slug);
  };
  const read = (slug, run) => {
    const rows = new Map();
    for (const values of run.rows) {
      const row = Object.fromEntries(facts.fields.map((name, i) => [name, values[i]]));
      const [name, title, page] = run.cases[row.case];
      const profile = run.profiles[row.profile];
      const series = `${row.timer} ${row.cache}`;
      rows.set(JSON.stringify([name, profile, series]), {
        ...row, case: name, title, profile, series,
        url: `../${page}#${row.record}`,
        device: run.cards[row.card][0],
        uuid: run.cards[row.card][1],
        doubt: row.doubt === null ? null : run.doubts[row.doubt],
      });
    }
    const place = (one, profile) => JSON.stringify([run.cases[one][0], run.profiles[profile]]);
    const [cases, profiles] = run.asked;
    return {
      ...run, slug, rows,
      said: new Map(run.reasons.map(([one, profile, why]) => [place(one, profile), why])),
      timed: new Set(run.rows.map((values) => place(values[0], values[1]))),
      cases: new Set(cases.map((i) => run.cases[i][0])),
      profiles: new Set(profiles.map((i) => run.profiles[i])),
    };
  };

  // evidence.compare: in what two runs are unlike, by the name under which it is allowed.
  const differences = (a, b) => facts.names.flatMap((name) => {
    const [mine, theirs] = [a, b].map((run) => new Map(run.alike[name]));
    const odd = [...new Set([...mine.keys(), ...theirs.keys()])]
      .map((fact) => [fact, mine.get(fact) ?? null, theirs.get(fact) ?? null])
      .filter(([, one, other]) => one !== other);
    return odd.length ? [[name, odd]] : [];
  });

  // metrics.welch, with Student's quantile by the cubic through the four nearest of the table.
  const quantile = (freedom) => {
    const last = facts.quantiles.length - 1;
    const place = last / freedom;
    const first = Math.min(Math.max(Math.floor(place) - 1, 0), last - 3);
    const near = [0, 1, 2, 3];
    const weight = (k) => near.reduce((made, m) => (m === k ? made : (made * (place - first - m)) / (k - m)), 1);
    return Math.exp(near.reduce((sum, k) => sum + facts.quantiles[first + k] * weight(k), 0));
  };
  const interval = (one, two) => {
    const parts = [one, two].map((row) => row.variance / row.processes);
    const total = parts[0] + parts[1];
    const spread = parts[0] ** 2 / (one.processes - 1) + parts[1] ** 2 / (two.processes - 1);
    const reach = quantile(spread ? total ** 2 / spread : 1) * Math.sqrt(total);
    const centre = one.mean - two.mean;
    return [Math.exp(centre - reach), Math.exp(centre + reach)];
  };

  // evidence.verdicts: the first that says anything decides, the interval last.
  const byInterval = (low, high) => {
    const [bottom, top] = [1 / (1 + facts.delta), 1 + facts.delta];
    const said = `${facts.level} interval ${low.toFixed(3)} to ${high.toFixed(3)}`;
    if (low > top) return ["supported", "above-delta", `${said} lies above ${top.toFixed(3)}`];
    if (high < bottom) return ["regression", "below-delta", `${said} lies below ${bottom.toFixed(3)}`];
    if (bottom <= low && high <= top) {
      return ["no difference", "within-delta", `${said} lies between ${bottom.toFixed(3)} and ${top.toFixed(3)}`];
    }
    const edges = [bottom, top].filter((edge) => low <= edge && edge <= high).map((edge) => edge.toFixed(3));
    const reached = `a precision of ${percent(halfWidth(low, high), 1)}`;
    return ["inconclusive", "straddles", `${said} straddles ${edges.join(" and ")}, at ${reached}`];
  };
  const byClock = (one, two) => {
    if (one.device !== "cuda" || one.uuid !== two.uuid || one.probe_ms === null || two.probe_ms === null) return null;
    const ratio = Math.max(one.probe_ms, two.probe_ms) / Math.min(one.probe_ms, two.probe_ms);
    const allowed = facts.clocks[one.device];
    if (ratio <= 1 + allowed) return null;
    const apart = percent(ratio - 1, 1);
    return ["rerun noise", "clock", `the clocks beside the two were ${apart} apart, ${percent(allowed, 0)} is allowed`];
  };
  const byNumber = (processes) => {
    const said = `${processes} of at least ${facts.enough} processes: too few for an interval to trust`;
    return processes < facts.enough ? ["inconclusive", "processes", said] : null;
  };
  const pair = (one, two) => {
    const processes = Math.min(one.processes, two.processes);
    const [low, high] = one.variance === null || two.variance === null ? [null, null] : interval(one, two);
    const [doubt] = [one, two].map((row) => row.doubt).filter(Boolean).sort((x, y) => x[0] - y[0]); // stable: A first
    const sure = () => byClock(one, two) ?? byNumber(processes) ?? byInterval(low, high);
    const [label, code, reason] = doubt?.slice(1) ?? sure();
    const counts = !facts.aside.includes(one.profile);
    return { one, two, low, high, label, code, reason, counts, speedup: one.ms / two.ms };
  };
  const lost = (a, b) => {
    const missing = new Map();
    for (const [key, row] of a.rows) {
      if (b.rows.has(key) || !b.cases.has(row.case) || !b.profiles.has(row.profile)) continue;
      const place = JSON.stringify([row.case, row.profile]);
      missing.set(place, [...(missing.get(place) ?? []), row]);
    }
    return [...missing].map(([place, rows]) => {
      const named = b.timed.has(place) ? ` in the series ${rows.map((row) => row.series).join(", ")}` : "";
      const why = b.said.get(place) ?? "it has no record there";
      return `${rows[0].profile} at ${rows[0].case} was not timed in B${named}: ${why}`;
    });
  };
  const compared = (a, b) => {
    const both = [...a.rows].filter(([key, row]) => b.rows.has(key) && b.rows.get(key).control_of === row.control_of);
    const rows = both.map(([key, row]) => pair(row, b.rows.get(key)));
    return { rows, lost: lost(a, b), onlyA: a.rows.size - rows.length, onlyB: b.rows.size - rows.length };
  };
  const tally = (rows) =>
    facts.labels
      .map(([label]) => [label, rows.filter((row) => row.label === label).length])
      .filter(([, count]) => count);
  const summary = ({ rows, onlyA, onlyB }, a, b) => {
    const counted = rows.filter((row) => row.counts);
    const parts = tally(counted).map(([label, count]) => `${count} ${became.get(label)}`).join(", ");
    const rowsOf = `${counted.length} row${counted.length === 1 ? "" : "s"}`;
    let said = `${b.name} against ${a.name}, ${rowsOf}: ${parts || "none that counts"}`;
    const roofs = rows.filter((row) => row.one.profile === facts.aside[0]);
    const moved = roofs.filter((row) => row.label === "supported" || row.label === "regression").length;
    if (moved) said += `; the roof itself changed in ${moved} of ${roofs.length} series, so the machine did too`;
    for (const [count, run] of [[onlyA, a], [onlyB, b]]) {
      if (count) said += `; ${count} row${count === 1 ? " is" : "s are"} in ${run.name} alone`;
    }
    return `${said}.`;
  };

  // What is seen of it.
  const kind = (label) => label.replaceAll(" ", "-");
  const series = (row) => (row.cache === "cold" ? row.timer : row.series);
  const place = (row) => `${row.one.profile} at ${row.one.case} (${row.one.series})`;
  const picture = (row, reach) => {
    const [width, height] = [150, 18];
    const x = (ratio) => Math.max(0, Math.min(width, (Math.log(ratio) / reach + 1) * (width / 2)));
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const draw = (tag, kind, values) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
      node.setAttribute("class", kind);
      for (const [name, value] of Object.entries(values)) node.setAttribute(name, value);
      svg.append(node);
    };
    const shape = { width, height, "aria-hidden": "true", class: kind(row.label) };
    for (const [name, value] of Object.entries(shape)) svg.setAttribute(name, value);
    const edge = x(1 + facts.delta);
    draw("rect", "within", { x: width - edge, y: 0, width: 2 * edge - width, height });
    draw("path", "even", { d: `M${width / 2} 0V${height}` });
    if (row.low !== null) draw("path", "reach", { d: `M${x(row.low)} ${height / 2}H${x(row.high)}` });
    const point = x(row.speedup);
    if (point > 0 && point < width) draw("circle", "point", { cx: point, cy: height / 2, r: 3.5 });
    else draw("path", "point", { d: point ? `M${width} 9l-7 -4.5v9z` : "M0 9l7 -4.5v9z" }); // beyond the edge
    return svg;
  };
  const line = (row, i, before, reach) => {
    const { one, two, low, high } = row;
    const made = make("tr", `${row.counts ? "" : "aside"}${before && before.one.case !== one.case ? " other" : ""}`);
    const head = make("th", "", make("span", "", one.title), roles.get(one.profile) ?? one.profile);
    head.scope = "row";
    head.dataset.v = i;
    const times = [one, two].map((each) => {
      const cell = make("td", "n", link(each.url, duration(each.ms)));
      const of = each.processes === 1 ? "one process" : `${each.processes} processes`;
      cell.title = `mean of ${of}; p50 of all samples ${each.p50_ms === null ? "unknown" : duration(each.p50_ms)}`;
      return cell;
    });
    const none = row.low === null;
    const between = make("td", "n", none ? "–" : `${low.toFixed(3)} to ${high.toFixed(3)}`);
    const width = make("td", "n", none ? "–" : giveOrTake(low, high));
    if (none) between.title = width.title = row.reason;
    const drawn = make("td", "drawn", picture(row, reach));
    drawn.dataset.v = row.speedup;
    const label = make("span", `call ${kind(row.label)}`, became.get(row.label));
    label.title = `${row.code}: ${row.reason}`;
    const speedup = make("td", "n", make("b", "", `${row.speedup.toFixed(3)}x`));
    made.append(head, make("td", "", series(one)), speedup, make("td", "", label), drawn, between, width, ...times);
    made.dataset.label = row.label;
    made.dataset.words = [one.title, one.case, head.textContent, one.profile, one.series].join(" ").toLowerCase();
    return made;
  };
  const reasons = (rows) => {
    const groups = new Map();
    for (const [label] of facts.labels) {
      for (const row of rows.filter((row) => row.label === label)) {
        const key = JSON.stringify([row.label, row.code]);
        groups.set(key, [...(groups.get(key) ?? []), row]);
      }
    }
    return [...groups.values()].map((those) => {
      const { label, code, reason } = those[0];
      const head = make("b", kind(label), became.get(label));
      if (those.length === 1) return make("li", "", head, ` (${code}): ${place(those[0])}: ${reason}`);
      const told = those.map((row) => make("li", "", `${place(row)}: ${row.reason}`));
      const first = ` (${code}) in ${those.length} rows, the first: ${place(those[0])}: ${reason}`;
      return make("li", "", make("details", "", make("summary", "", head, first), make("ul", "prose", ...told)));
    });
  };
  const filter = () => {
    const pressed = [...at("tools").querySelectorAll("[aria-pressed='true']")].map((chip) => chip.dataset.label);
    const words = at("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...at("pairs").tBodies[0].rows];
    for (const row of rows) {
      const named = words.every((word) => row.dataset.words.includes(word));
      row.hidden = !named || (pressed.length > 0 && !pressed.includes(row.dataset.label));
    }
    const shown = rows.filter((row) => !row.hidden);
    const aside = shown.filter((row) => row.classList.contains("aside")).length;
    const of = shown.length === rows.length ? "" : ` of ${rows.length}`;
    const idle = aside ? `, ${aside} of them the copy and the control, which do not count` : "";
    at("count").textContent = `${shown.length}${of} row${shown.length === 1 ? "" : "s"}${idle}.`;
  };
  const chips = (rows) => {
    const made = tally(rows).map(([label, count]) => {
      const chip = make("button", `chip ${kind(label)}`, make("b", "", `${count}`), ` ${became.get(label)}`);
      chip.type = "button";
      chip.dataset.label = label;
      chip.setAttribute("aria-pressed", "false");
      chip.addEventListener("click", () => {
        chip.setAttribute("aria-pressed", `${chip.getAttribute("aria-pressed") === "false"}`);
        filter();
      });
      return chip;
    });
    at("tools").replaceChildren(...made, at("find"));
  };
  const showRows = (found) => {
    // One scale for all rows, which what is not decided, or lies far off, does not stretch.
    const decided = found.rows.filter((row) => ["supported", "regression", "no difference"].includes(row.label));
    const far = decided.map((row) => Math.abs(Math.log(row.speedup))).sort((x, y) => x - y);
    const reach = Math.max(1.2 * (far[Math.floor(0.9 * (far.length - 1))] ?? 0), 5 * Math.log1p(facts.delta));
    at("span").textContent = `${Math.exp(-reach).toFixed(2)}x to ${Math.exp(reach).toFixed(2)}x`;
    at("pairs").tBodies[0].replaceChildren(...found.rows.map((row, i) => line(row, i, found.rows[i - 1], reach)));
    columns.forEach((head) => head.removeAttribute("aria-sort"));
    chips(found.rows.filter((row) => row.counts)); // as the sentence counts
    filter();
    at("reasons").lastElementChild.replaceChildren(...reasons(found.rows));
    at("found").hidden = at("reasons").hidden = found.rows.length === 0;
  };
  const permitted = (allowed, name) => allowed.has(name) || allowed.has(facts.everything);
  let ticked = null; // what is made anew keeps the focus
  const showUnlike = (odd, allowed, refused) => {
    const choose = (name, ...words) => {
      const box = document.createElement("input");
      box.type = "checkbox";
      box.dataset.allow = name;
      box.checked = permitted(allowed, name);
      box.addEventListener("change", () => {
        ticked = name;
        const names = box.checked ? [...allowed, name] : [...allowed].filter((one) => one !== name);
        go({ ...state(), allowed: new Set(names) });
      });
      return make("label", "", box, " ", ...words);
    };
    const listed = make("dl", "");
    for (const [name, differing] of odd) {
      const facing = differing.map(([fact, ...sides]) => {
        const [one, other] = sides.map((value) => make("span", "id", value ?? "none"));
        return make("span", "", make("small", "", `${fact} `), one, " / ", other);
      });
      listed.append(make("dt", "", choose(name, name)), make("dd", "", ...facing));
    }
    const names = odd.map(([name]) => name).join(", ");
    const why = "Times may differ for one of these reasons alone (A’s / B’s). Compare all the same, although unlike in:";
    const head = refused.length ? "Unlike runs" : `Unlike runs, compared all the same: they differ in ${names}`;
    const field = make("fieldset", "", make("legend", "", why), listed);
    if (odd.length > 1) field.append(choose(facts.everything, "all of these"));
    const folded = make("details", "", make("summary", "", make("strong", "", head)), field);
    folded.open = refused.length > 0 || ticked !== null;
    at("unlike").replaceChildren(folded);
    at("unlike").hidden = odd.length === 0;
    [...folded.querySelectorAll("input")].find((box) => box.dataset.allow === ticked)?.focus();
    ticked = null;
  };
  const told = (run) => {
    const of = new Map(Object.values(run.alike).flat());
    const named = (word, fact, most = 40) => (of.get(fact) ? [`${word} ${of.get(fact).slice(0, most)}`] : []);
    const software = [...named("PyTorch", "torch"), ...named("Triton", "triton"), ...named("driver", "driver")];
    const parts = [...software, ...named("commit", "commit", 10)];
    return [link(`../runs/${run.slug}/index.html`, "Its page"), ` · ${parts.join(" · ")}`];
  };

  // The pair is in the address: whoever has the link, or goes back, sees the same.
  const slugs = new Set([...at("a").options].filter((one) => one.value).map((one) => one.value));
  const state = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    const named = given.has("a") || given.has("b");
    const [a, b] = named ? [given.get("a"), given.get("b")] : facts.first;
    return { a: a ?? "", b: b ?? "", allowed: new Set((given.get("allow") ?? "").split(",").filter(Boolean)) };
  };
  const go = ({ a, b, allowed = [] }) => {
    const given = new URLSearchParams({ a, b });
    if ([...allowed].length) given.set("allow", [...allowed].join(","));
    location.hash = given;
  };
  const say = (text) => (at("said").textContent = text);
  let turn = 0;
  const show = async () => {
    const mine = (turn += 1);
    const { a, b, allowed } = state();
    for (const [side, slug] of [["a", a], ["b", b]]) {
      at(side).value = slugs.has(slug) ? slug : "";
      at(`${side}-told`).replaceChildren();
    }
    for (const part of ["unlike", "found", "notices", "reasons"]) at(part).hidden = true;
    const unknown = [a, b].find((slug) => slug && !slugs.has(slug));
    if (unknown) return say(`No run that can be compared has the address ${unknown.slice(0, facts.longest)}.`);
    if (!a || !b) return say("Choose two runs.");
    let runs;
    try {
      runs = await Promise.all([load(a), load(b)]);
    } catch (error) {
      return mine === turn && say(`These two cannot be compared here: ${error.message}.`);
    }
    if (mine !== turn) return; // another pair was chosen meanwhile
    const [one, two] = runs;
    at("a-told").replaceChildren(...told(one));
    at("b-told").replaceChildren(...told(two));
    if (a === b) return say(`${one.name} differs from itself in nothing: choose another run for A or B.`);
    const odd = differences(one, two);
    const refused = odd.map(([name]) => name).filter((name) => !permitted(allowed, name));
    showUnlike(odd, allowed, refused);
    if (refused.length) {
      const names = refused.join(", ");
      return say(`${two.name} and ${one.name} differ in ${names}: they are not compared unless you allow it.`);
    }
    const found = compared(one, two);
    const doubted = runs.flatMap((run) => run.left_out.map((said) => `${run.name}: ${said}`));
    const missing = [...found.lost, ...doubted];
    at("notices").lastElementChild.replaceChildren(...missing.map((said) => make("li", "", said)));
    at("notices").hidden = missing.length === 0;
    showRows(found);
    if (!found.rows.length && !found.lost.length) return say(`${two.name} and ${one.name} have no row in common.`);
    say(summary(found, one, two));
  };
  at("a").addEventListener("change", () => go({ a: at("a").value, b: at("b").value }));
  at("b").addEventListener("change", () => go({ a: at("a").value, b: at("b").value }));
  at("swap").addEventListener("click", () => go({ ...state(), a: state().b, b: state().a }));
  at("find").addEventListener("input", filter);
  addEventListener("hashchange", show);
  at("compare").hidden = false;
  show();
}
