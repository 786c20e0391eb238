// A heatmap whose cells can be selected with the mouse or the arrow keys.
// `model` is the model of anywidget, or the stand-in of dom.js, and `link` (page.js) what the page's
// address says of the view.

const SHADES = ["#def5e5", "#a9e1bd", "#60ceac", "#3eb4ad", "#3497a9", "#357aa2", "#395d9c",
  "#413f80", "#382a54", "#251729", "#0b0405"];  // seaborn's mako_r, as in the figures
const SIDES = ["#2369bd", "#5b84bd", "#87a0c4", "#afbcd1", "#d9dce5", "#faf5f4", "#ecd3d2",
  "#dbaba8", "#cc8582", "#bb5e5d", "#a9373b"];  // seaborn's vlag, for numbers of both signs
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function written(value, kind) {
  if (value === null || value === undefined) return "not run";
  if (kind === "share") return `${Math.round(100 * value)} %`;
  if (kind === "yes") return value ? "yes" : "no";
  if (kind === "rank") return String(Math.round(value * 10) / 10);
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : value.toFixed(3);
}

// The shade of a value, from 0 (light) to 1 (dark).
function shade(value, kind, largest) {
  if (kind === "yes") return value ? 0.72 : 0;
  if (kind === "number") return largest > 0 ? (1 + value / largest) / 2 : 0.5;
  if (kind === "rank") return 1 - Math.log1p(value) / Math.log1p(Math.max(largest, 1));
  return largest > 0 ? Math.min(1, Math.max(0, value / largest)) : 0;
}

function color(part, shades = SHADES) {
  const place = part * (shades.length - 1), low = Math.floor(place);
  const [a, b] = [shades[low], shades[Math.min(low + 1, shades.length - 1)]].map((hex) =>
    [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return `rgb(${a.map((each, i) => Math.round(each + (b[i] - each) * (place - low))).join(",")})`;
}

// The text colour on a shade: white on dark shades.
function inkOn(part, kind) {
  const dark = kind === "number" ? Math.abs(part - 0.5) > 0.3 : part > 0.4;
  return dark ? "#ffffff" : "#111111";
}

const largestOf = (values) => values.reduce((most, each) => Math.max(most, Math.abs(each ?? 0)), 0);
const shadesOf = (kind) => (kind === "number" ? SIDES : SHADES);

function renderGrid({ model, el, link }) {
  const spec = model.get("spec");
  const known = new Map(Object.entries(model.get("slices")));
  const [xs, ys] = [spec.x, spec.y].map((axis) => axis.names ?? axis.values);
  let at = null;  // the selected cell: [column, row], with rows counted from the bottom
  let measure = null;
  let linked = null;  // the cell to which the page's address leads
  let lost = "";  // what the address names that is not here

  const title = make("p", { class: "hopscope-title" }, spec.title);
  const controls = make("div", { class: "hopscope-controls" });
  const plot = make("div", {
    class: "hopscope-plot", tabindex: "0", role: "application",
    "aria-roledescription": "heatmap", "aria-label":
      `${spec.title}. ${spec.x.label} across, ${spec.y.label} upwards. Arrow keys move.`,
  });
  const cell = make("div", { role: "status", "aria-live": "polite" });
  const beside = make("div");
  const readout = make("div", { class: "hopscope-readout" }, cell, beside);
  const root = make("div", VIEW, title, controls,
    make("div", { class: "hopscope-body" }, plot, readout));
  el.append(root);

  const chosen = () => model.get("chosen");
  const keyOf = () => JSON.stringify(spec.choices.map((each) => chosen()[each.name]));
  const slice = () => known.get(keyOf());

  function choose(name, value) {
    model.set("chosen", { ...chosen(), [name]: value });
    model.save_changes();
    update();
    if (linked) tellLink();
  }

  // The address leads to the cell that was clicked, under the current choices.
  function tellLink() {
    const cell = [spec.x.values[linked[0]], spec.y.values[linked[1]]].join(",");
    link?.write({ ...chosen(), cell });
  }

  function followLink(said) {
    const [next, missing] = [{ ...chosen() }, []];
    for (const { name, label, options } of spec.choices) {
      const value = said.get(name);
      if (value === null) continue;
      if (options.some((each) => each.value === value)) next[name] = value;
      else missing.push(`${label} “${value}”`);
    }
    const [x, y] = (said.get("cell") ?? "").split(",").map(Number);
    const cell = [spec.x.values.indexOf(x), spec.y.values.indexOf(y)];
    const named = said.has("cell"), isHere = named && !cell.includes(-1);
    if (named && !isHere) missing.push(`cell ${said.get("cell")}`);
    lost = missing.length ? `The address leads to what is not here: ${missing.join(", ")}.` : "";
    linked = isHere && !lost ? cell : null;  // never a cell of something else
    if (named || lost) at = linked;
    model.set("chosen", next);
    update();
    if (named) root.scrollIntoView({ block: "nearest" });
  }

  const shadedBy = make("span");
  controls.append(...spec.choices.filter((each) => each.options.length > 1).map((each) =>
    selector(each.label, each.options, chosen()[each.name],
      (value) => choose(each.name, value), each.name)), shadedBy);
  let offered = "";  // the measures that are currently offered

  // Fields are not rebuilt while they are in use, so that none loses the focus.
  function drawControls() {
    for (const select of controls.querySelectorAll("select[data-name]")) {
      select.value = chosen()[select.dataset.name];
    }
    const measures = slice()?.measures ?? [];
    const options = measures.map((each) => ({ value: each.name, label: each.label }));
    if (!measures.length || JSON.stringify(options) === offered) return;
    offered = JSON.stringify(options);
    shadedBy.replaceChildren(...(options.length > 1
      ? [selector("shaded by", options, measure, (value) => {
        measure = value;
        update();
      })] : []));
  }

  // Cells take at most 420 by 360 pixels, or more if they contain words.
  const size = Math.max(4, Math.min(28, 420 / xs.length, 360 / ys.length));
  const wordy = Object.values(model.get("slices")).some((each) => each.inside);
  const [across, up] = wordy ? [Math.max(52, size), Math.max(14, size)] : [size, size];
  const longest = Math.max(...xs.map((each) => (typeof each === "string" ? each.length : 0)));
  const [left, bottom] = [48, 40 + Math.min(90, 6 * longest)];
  const [width, height] = [across * xs.length, up * ys.length];
  // An axis label that is longer than its cells starts where they start.
  const [overX, overY] = [spec.x.label.length * 6.5 - width, spec.y.label.length * 6.5 - height]
    .map((each) => Math.max(0, each));
  const top = 6 + overY;

  function drawPlot() {
    const now = slice();
    const shown = now?.measures.find((each) => each.name === measure);
    const mark = now?.measures.find((each) => each.name === now.marked);
    const image = draw("svg", {
      width: left + width + overX + 8, height: height + bottom + top,
      viewBox: `0 ${-top} ${left + width + overX + 8} ${height + bottom + top}`,
      "aria-hidden": "true",
    });
    const largest = shown ? shown.largest ?? largestOf(shown.values) : 0;
    const words = now?.texts.find((each) => each.label === now.inside);
    for (let row = 0; shown && row < ys.length; row++) {
      for (let column = 0; column < xs.length; column++) {
        const index = row * xs.length + column, value = shown.values[index];
        if (value === null) continue;
        const [x, y] = [left + column * across, height - (row + 1) * up];
        const part = shade(value, shown.kind, largest);
        image.append(draw("rect", {
          x, y, width: across, height: up, fill: color(part, shadesOf(shown.kind)), class: "hopscope-cell",
          "data-column": column, "data-row": row,
        }));
        if (mark && mark.values[index] === 1) {
          image.append(draw("circle", {
            cx: x + across / 2, cy: y + up / 2, r: size / 5, "pointer-events": "none",
            fill: inkOn(part, shown.kind),
          }));
        }
        if (words?.codes[index] >= 0) {
          image.append(draw("text", {
            x: x + across / 2, y: y + up / 2 + 4, "text-anchor": "middle",
            "pointer-events": "none", style: `fill: ${inkOn(part, shown.kind)}`,
          }, words.words[words.codes[index]].trim().slice(0, 8)));
        }
      }
    }
    drawAxes(image);
    if (at) {
      image.append(draw("rect", {
        x: left + at[0] * across + 1, y: height - (at[1] + 1) * up + 1, width: across - 2,
        height: up - 2, class: "hopscope-cursor",
      }));
    }
    plot.replaceChildren(image, ...(shown ? [scale(shown, largest)] : []));
  }

  function drawAxes(image) {
    const every = (values) => Math.ceil(values.length / 12);
    const slanted = xs.some((each) => typeof each === "string");
    xs.forEach((value, i) => {
      if (!slanted && i % every(xs)) return;
      const [x, y] = [left + (i + 0.5) * across, height + 13];
      image.append(draw("text", slanted
        ? { "text-anchor": "end", transform: `translate(${x + 4} ${y - 2}) rotate(-50)` }
        : { x, y, "text-anchor": "middle" }, value));
    });
    ys.forEach((value, i) => i % every(ys) === 0 && image.append(draw("text", {
      x: left - 5, y: height - (i + 0.5) * up + 4, "text-anchor": "end",
    }, value)));
    image.append(
      draw("text", {
        x: left + (width + overX) / 2, y: height + bottom - 8, "text-anchor": "middle",
      }, spec.x.label),
      draw("text", {
        "text-anchor": "middle", transform: `translate(12 ${(height - overY) / 2}) rotate(-90)`,
      }, spec.y.label));
  }

  function scale(shown, largest) {
    const lowest = { rank: largest, number: -largest }[shown.kind] ?? 0;
    const highest = { rank: 0, yes: 1 }[shown.kind] ?? largest;
    const stops = shown.kind === "yes" ? [0, 0.72] : [0, 0.2, 0.4, 0.6, 0.8, 1];
    const colors = stops.map((part) => color(part, shadesOf(shown.kind)));
    return make("div", { class: "hopscope-scale" }, written(lowest, shown.kind),
      make("span", { style: `background: linear-gradient(90deg, ${colors.join(",")})` }),
      written(highest, shown.kind));
  }

  function drawReadout() {
    const now = slice();
    beside.replaceChildren(...(now?.facts.length ? [facts(now.facts)] : []));
    if (!now || !at) {
      const hint = now ? "Point at a cell, or click the picture and use the arrow keys." : "…";
      const clicked = link ? " The address of this page leads to the cell that you click." : "";
      cell.replaceChildren(...(lost ? [make("p", { class: "hopscope-error" }, lost)] : []),
        make("p", { class: "hopscope-hint" }, hint + clicked));
      return;
    }
    const index = at[1] * xs.length + at[0];
    const told = now.measures.map((each) => [each.label, written(each.values[index], each.kind)]);
    const said = now.texts.filter((each) => each.codes[index] >= 0)
      .map((each) => [each.label, each.words[each.codes[index]]]);
    cell.replaceChildren(make("p", { class: "hopscope-where" },
      `${spec.x.label} ${xs[at[0]]}, ${spec.y.label} ${ys[at[1]]}`), facts([...said, ...told]));
  }

  function update() {
    const names = (slice()?.measures ?? []).map((each) => each.name);
    if (names.length && !names.includes(measure)) measure = names[0];
    drawControls();
    drawPlot();
    drawReadout();
  }

  function move(column, row) {
    const inside = column >= 0 && column < xs.length && row >= 0 && row < ys.length;
    if (!inside || (at && at[0] === column && at[1] === row)) return;
    at = [column, row];
    drawPlot();
    drawReadout();
  }

  plot.addEventListener("pointermove", (event) => {
    const { column, row } = event.target.dataset ?? {};
    if (column !== undefined) move(Number(column), Number(row));
  });
  plot.addEventListener("click", (event) => {
    const { column, row } = event.target.dataset ?? {};
    if (column === undefined) return;
    move(Number(column), Number(row));
    linked = at;
    tellLink();
  });
  plot.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    if (at) move(at[0] + step[0], at[1] + step[1]);
    else move(...firstCell());
    linked = at;
    tellLink();
    const [here, box] = [plot.querySelector(".hopscope-cursor"), plot].map((each) =>
      each.getBoundingClientRect());
    plot.scrollLeft += Math.max(0, here.right - box.right) - Math.max(0, box.left - here.left);
  });

  // The first cell with a value, starting at the lower left.
  function firstCell() {
    const values = slice()?.measures[0]?.values ?? [];
    const index = Math.max(0, values.findIndex((each) => each !== null));
    return [index % xs.length, Math.floor(index / xs.length)];
  }

  const onSlices = () => {
    for (const [key, value] of Object.entries(model.get("slices"))) known.set(key, value);
    update();
  };
  model.on("change:slices", onSlices);
  model.on("change:chosen", update);
  if (link) link.follow(followLink);
  else update();
  return () => {
    model.off("change:slices", onSlices);
    model.off("change:chosen", update);
  };
}
