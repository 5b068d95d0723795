// The explorer page: its controls, the figure (plotly), the table of the same numbers, and the address that keeps a choice.
(() => {
  "use strict";
  const data = window.RIDGE_EXPLORER;
  const form = document.getElementById("explorer");
  if (!data || !window.Plotly || !form) return; // the static figure stays

  const at = (id) => document.getElementById(`explorer-${id}`);
  const control = form.elements;
  const FIRST = ["predictive_information", "null_information", "unbiased_information"];
  const FINAL_NORM = "after the final norm";
  let sizes = []; // the N that the slider stands on

  const unique = (values) => [...new Set(values)];
  const stepName = (step) => (step ? `step ${step}` : "untouched");
  const caseName = (one) => `${one.task}|${one.source}`;
  const here = () => data.cases.find((one) => one.model === control.model.value && caseName(one) === control.task.value);
  const measured = () =>
    here().curves.filter((curve) => curve.split === control.split.value && curve.step === Number(control.step.value));
  const boxes = () => [...at("quantities").querySelectorAll("input")];

  /** Fill a select with [value, text] pairs; what was chosen stays chosen where it is still there. */
  function fill(select, pairs, wanted = select.value) {
    select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));
    select.value = pairs.some(([value]) => String(value) === String(wanted)) ? wanted : pairs[0][0];
  }

  /** Make every control offer what was measured for the choices before it. */
  function offer(wanted = {}) {
    const models = unique(data.cases.map((one) => one.model));
    const nameOf = (model) => data.cases.find((one) => one.model === model).model_name;
    fill(control.model, models.map((model) => [model, nameOf(model)]), wanted.model);
    const tasks = data.cases.filter((one) => one.model === control.model.value);
    const task = tasks.find((one) => one.task === wanted.task && (!wanted.source || one.source === wanted.source));
    fill(control.task, tasks.map((one) => [caseName(one), one.task_name]), task && caseName(task));
    const splits = unique(here().curves.map((curve) => curve.split));
    fill(control.split, Object.entries(data.splits).filter(([split]) => splits.includes(split)), wanted.split);
    const steps = unique(here().curves.filter((curve) => curve.split === control.split.value).map((curve) => curve.step));
    fill(control.step, steps.sort((a, b) => a - b).map((step) => [step, stepName(step)]), wanted.step);

    const several = unique(measured().map((curve) => curve.q)).flatMap((quantity) => {
      const found = measured().filter((curve) => curve.q === quantity).map((curve) => curve.n);
      return found.length > 1 ? found : [];
    });
    const before = Number(wanted.n) || sizes[control.n.value] || 200;
    sizes = unique(several.length ? several : measured().map((curve) => curve.n)).sort((a, b) => a - b);
    control.n.max = sizes.length - 1;
    control.n.value = sizes.indexOf(nearest(sizes, before, (n) => n));
    control.n.disabled = sizes.length < 2;
    for (const box of boxes()) box.disabled = !measured().some((curve) => curve.q === box.value);
  }

  function nearest(items, n, size) {
    const distance = (item) => Math.abs(Math.log(size(item) / n));
    return items.reduce((best, item) => (distance(item) < distance(best) ? item : best));
  }

  /** The chosen curves, each at the N that is nearest to the slider's. */
  function chosen() {
    return boxes().filter((box) => box.checked && !box.disabled).map((box) => {
      const curve = nearest(measured().filter((one) => one.q === box.value), sizes[control.n.value], (one) => one.n);
      const inside = curve.y.filter((_, i) => curve.x[i] <= blocks() || curve.y.length === 1);
      const top = control.shape.checked ? Math.max(...inside) : 1;
      const scaled = (values) => values && values.map((value) => value / top);
      const { label, panel, colour, dash } = data.quantities[curve.q];
      const [y, low, high] = [curve.y, curve.low, curve.high].map(scaled);
      return { ...curve, y, low, high, label, colour, dash, panel: control.shape.checked ? "shape" : panel };
    });
  }

  const blocks = () => here().runs[0].blocks;
  const placeName = (x) => (x > blocks() ? FINAL_NORM : `layer ${x}`);
  const number = (value) => (Math.abs(value) < 0.0001 ? value.toExponential(1) : value.toPrecision(4));
  const withInterval = (curve, i) =>
    number(curve.y[i]) + (curve.low ? ` [${number(curve.low[i])}, ${number(curve.high[i])}]` : "");

  function hover(curve, i) {
    const seeds = curve.seeds > 1 ? `, ${curve.seeds} training seeds` : "";
    const interval = curve.interval ? ` (${curve.interval})` : "";
    return (
      `<b>${curve.label}</b><br>${placeName(curve.x[i])}: ${withInterval(curve, i)}${interval}` +
      `<br>N = ${curve.n}${seeds}<br>${here().runs[curve.run].command}`
    );
  }

  /** Plotly's traces of a curve: its band, its line, and the state after the final norm as a diamond. */
  function traces(curve, axis, ink) {
    const colour = curve.colour === "#444444" ? ink : curve.colour; // grey is unseen on the dark ground
    if (curve.x.length === 1) { // one number for all layers
      curve = { ...curve, x: [0, blocks()], y: [curve.y[0], curve.y[0]] };
    }
    const body = curve.x.map((x, i) => i).filter((i) => curve.x[i] <= blocks());
    const norm = curve.x.map((x, i) => i).filter((i) => curve.x[i] > blocks());
    const pick = (values, where) => where.map((i) => values[i]);
    const base = { yaxis: axis, legendgroup: curve.q, hoverinfo: "text" };
    const line = { color: colour, dash: curve.dash, width: 2 };
    const drawn = [];
    if (curve.low) {
      const x = [...pick(curve.x, body), ...pick(curve.x, body).reverse()];
      const y = [...pick(curve.high, body), ...pick(curve.low, body).reverse()];
      const band = { ...base, x, y, fill: "toself", fillcolor: `${curve.colour}40`, line: { width: 0 }, mode: "lines" };
      drawn.push({ ...band, hoverinfo: "skip", showlegend: false });
    }
    const text = (where) => where.map((i) => hover(curve, i));
    const name = `${curve.label}, N = ${curve.n}`;
    drawn.push({ ...base, x: pick(curve.x, body), y: pick(curve.y, body), text: text(body), mode: "lines", line, name });
    if (norm.length) {
      const point = { ...base, x: pick(curve.x, norm), y: pick(curve.y, norm), text: text(norm), mode: "markers" };
      const ends = curve.low && {
        type: "data", symmetric: false, color: colour,
        array: norm.map((i) => curve.high[i] - curve.y[i]), arrayminus: norm.map((i) => curve.y[i] - curve.low[i]),
      };
      drawn.push({ ...point, marker: { symbol: "diamond", size: 8, color: colour }, error_y: ends || {}, showlegend: false });
    }
    return drawn;
  }

  function draw() {
    const curves = chosen();
    const style = getComputedStyle(document.documentElement);
    const [ink, ground, border] = ["text-base", "background", "border"].map((name) =>
      style.getPropertyValue(`--pst-color-${name}`).trim());
    const panels = unique(curves.map((curve) => curve.panel));
    const axes = Object.fromEntries(panels.map((panel, i) => [panel, i ? `y${i + 1}` : "y"]));
    const grid = { gridcolor: border, linecolor: ink, zerolinecolor: border, automargin: true };
    const layout = {
      paper_bgcolor: ground, plot_bgcolor: ground, font: { color: ink, family: "inherit", size: 13 },
      height: 150 + 230 * Math.max(1, panels.length), margin: { l: 60, r: 10, t: 30, b: 50 },
      hovermode: "closest", hoverlabel: { align: "left", bgcolor: ground, font: { color: ink } }, dragmode: false,
      legend: { orientation: "h", y: 1, yanchor: "bottom" },
      xaxis: { ...grid, title: { text: "layer (◆ after the final norm)" }, dtick: blocks() > 15 ? 5 : 1, anchor: axes[panels.at(-1)] },
    };
    panels.forEach((panel, i) => {
      const height = 1 / panels.length;
      const title = panel === "shape" ? "share of largest value" : data.panels[panel];
      const domain = [1 - (i + 1) * height + (i < panels.length - 1 ? 0.04 : 0), 1 - i * height];
      layout[axes[panel].replace("y", "yaxis")] = { ...grid, domain, title: { text: title }, rangemode: "tozero" };
    });
    const figure = at("figure");
    Plotly.react(figure, curves.flatMap((curve) => traces(curve, axes[curve.panel], ink)), layout, {
      responsive: true, displayModeBar: false,
    });
    figure.setAttribute("role", "img");
    figure.setAttribute("aria-label", `${curves.map((curve) => curve.label).join("; ")}: over layers, values in the table below`);
    tell(curves);
  }

  /** The same in words and numbers: status, table, commands. */
  function tell(curves) {
    at("n").value = sizes[control.n.value];
    control.n.setAttribute("aria-valuetext", `${sizes[control.n.value]} examples`);
    const largest = (curve) => {
      const inside = curve.y.filter((_, i) => curve.x[i] <= blocks());
      return inside.length > 1 ? `, largest at ${placeName(curve.x[inside.indexOf(Math.max(...inside))])}` : "";
    };
    at("status").textContent = curves.map((one) => `${one.label} (N = ${one.n}${largest(one)})`).join("; ") || "No curve is chosen.";
    const table = document.createElement("table");
    const row = (cells, tag) => {
      const line = table.insertRow();
      for (const cell of cells) {
        const item = document.createElement(tag);
        if (tag === "th") item.scope = "col";
        item.textContent = cell;
        line.append(item);
      }
    };
    row(["place", ...curves.map((one) => `${one.label}, N = ${one.n}${one.interval && ` [${one.interval}]`}`)], "th");
    for (const x of unique(curves.flatMap((one) => one.x)).sort((a, b) => a - b)) {
      const cell = (one) => (one.x.includes(x) ? withInterval(one, one.x.indexOf(x)) : "–");
      row([placeName(x), ...curves.map(cell)], "td");
    }
    at("table").replaceChildren(table);
    const runs = unique(curves.map((curve) => curve.run)).map((run) => here().runs[run]);
    at("made").textContent = runs.map((run) => `${run.command}\n  # stored: ${run.file}`).join("\n");
  }

  /** What the address says: #model=…&task=…&source=…&split=…&step=…&n=…&show=a,b&shape=1 */
  function fromAddress() {
    const wanted = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    const shown = wanted.show ? wanted.show.split(",") : FIRST;
    for (const box of boxes()) box.checked = shown.includes(box.value);
    control.shape.checked = wanted.shape === "1";
    offer({ model: "smollm2-135m", task: "synthetic_arithmetic", split: "all", ...wanted });
    draw();
  }

  function toAddress() {
    const { model, task, source } = here();
    const show = boxes().filter((box) => box.checked).map((box) => box.value).join(",");
    const choice = { model, task, source, split: control.split.value, step: control.step.value, n: sizes[control.n.value], show };
    if (control.shape.checked) choice.shape = "1";
    history.replaceState(null, "", `#${new URLSearchParams(choice)}`);
  }

  for (const [quantity, { label }] of Object.entries(data.quantities)) {
    const item = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", value: quantity });
    item.append(box, ` ${label}`);
    at("quantities").append(item);
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    offer();
    draw();
    toAddress();
  });
  addEventListener("hashchange", fromAddress);
  document.documentElement.classList.add("explorer-runs");
  form.hidden = false;
  fromAddress();
  new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
})();
