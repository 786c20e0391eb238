// The mask painter: drag over cells, or move with the arrow keys and press space.

const [SEEN, UNSEEN, SELF] = ["#0072b2", "#f0f0f0", "#003f63"];
const STEP_OF = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

const numbered = (n) => Array.from({ length: n }, (_, i) => ({ value: String(i), label: String(i) }));

function renderMask({ model, el, link }) {
  const isLive = Boolean(model.send);  // a kernel answers, and the mask can be painted
  const tokens = model.get("tokens"), parts = model.get("parts"), n = tokens.length;
  let seen = model.get("seen").map((row) => [...row].map(Number));
  let at = [0, 0];  // query, key
  let brush = null;  // the value that the current stroke paints: 1 or 0
  let start = null;  // the last cell of the stroke

  const size = Math.max(3, Math.min(14, Math.floor(480 / n)));
  const canvas = make("canvas", {
    tabindex: "0", role: "application", "aria-roledescription": "mask",
    "aria-label": "Who sees whom: a row for each token that looks, a column for each that is seen. "
      + "Arrow keys move, space changes a cell.",
  });
  const ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.height = n * size * ratio;
  canvas.style.width = canvas.style.height = `${n * size}px`;
  // The description of a cell names the parts of its tokens.
  const along = (side, kind) => make("div", { class: kind, "aria-hidden": "true" }, ...parts.map(
    ({ name, start, stop }) => make("div", { style: `${side}: ${(stop - start) * size}px` }, name)));
  const names = along("height", "hopscope-parts"), keyNames = along("width", "hopscope-key-parts");
  const axis = (kind, name) => make("div", { class: kind, "aria-hidden": "true" }, name);
  const words = tokens.map((each) => make("span", {}, each));
  const before = model.get("before");
  const prompt = make("div", { class: "hopscope-prompt" },
    ...(before.trim() ? [make("details", {},
      make("summary", {}, "what stands before, whose part of the mask cannot change"), before)] : []),
    ...words);
  const heads = selector("heads", [{ value: "", label: "all" }, ...numbered(model.get("n_heads"))],
    "", (value) => {
      model.set("heads", value ? value.split(",").map(Number) : []);
      model.save_changes();
    });
  const several = make("option");  // several heads, which only code can choose
  const told = make("div", { class: "hopscope-readout", role: "status", "aria-live": "polite" });
  const answers = make("div", { class: "hopscope-answers" });
  const run = button("Ask under this mask", () => {
    run.disabled = true;
    model.send({ type: "ask" });
  });
  const presets = model.get("presets").map((each) => ({ value: each, label: each }));
  const layers = numbered(model.get("n_layers"));
  let shownLayers = model.get("layers");
  const controls = make("div", { class: "hopscope-controls" },
    selector("begin with", presets, presets[0].value, (name) => model.send({ type: "begin", name })),
    selector("paint", [
      { value: "cell", label: "cell by cell" }, { value: "block", label: "whole parts" },
    ], "cell", (value) => { blocks = value === "block"; }),
    ...["from layer", "to layer"].map((label, end) => selector(label, layers, String(shownLayers[end]),
      (value) => setLayer(end, Number(value)))),
    heads,
    button("Start over", () => model.send({ type: "begin", name: begin() })), run);
  const begin = () => controls.querySelector("select").value;
  let blocks = false;
  const side = make("div", { class: "hopscope-side" }, told, answers);
  el.append(make("div", VIEW,
    make("p", { class: "hopscope-title" }, model.get("title")), prompt,
    isLive ? controls : facts([["mask", model.get("name")]]),
    make("div", { class: "hopscope-body" },
      make("div", { class: "hopscope-plot hopscope-named" },
        axis("hopscope-key-axis", "token that is seen (key)"), keyNames,
        axis("hopscope-query-axis", "token that looks (query)"), names, canvas), side)));

  // The other end moves if the range would be empty.
  function setLayer(end, value) {
    shownLayers = shownLayers.map((each, i) => (i === end ? value
      : end === 0 ? Math.max(each, value) : Math.min(each, value)));
    model.set("layers", shownLayers);
    model.save_changes();
  }

  function tellHeads() {
    const chosen = model.get("heads").join(","), select = heads.querySelector("select");
    several.remove();
    if (model.get("heads").length > 1) {
      several.value = several.textContent = chosen;
      select.append(several);
    }
    select.value = chosen;
  }

  const partOf = (token) => parts.find((each) => each.start <= token && token < each.stop);

  function drawMask() {
    const brush2d = canvas.getContext("2d");
    brush2d.setTransform(ratio, 0, 0, ratio, 0, 0);
    for (let query = 0; query < n; query++) {
      for (let key = 0; key < n; key++) {
        brush2d.fillStyle = query === key ? SELF : seen[query][key] ? SEEN : UNSEEN;
        brush2d.fillRect(key * size, query * size, size, size);
      }
    }
    brush2d.fillStyle = "#ffffff";
    for (const part of parts.slice(1)) {
      brush2d.fillRect(part.start * size - 0.5, 0, 1, n * size);
      brush2d.fillRect(0, part.start * size - 0.5, n * size, 1);
    }
    brush2d.strokeStyle = "#d55e00";
    brush2d.lineWidth = 2;
    brush2d.strokeRect(at[1] * size, at[0] * size, size, size);
  }

  function tell() {
    const [query, key] = at, sees = seen[query][key] ? "sees" : "does not see";
    const named = (token) => `“${printable(tokens[token])}” (${partOf(token)?.name ?? "?"}, ${token})`;
    words.forEach((each, i) => {
      each.classList.toggle("hopscope-looks", i === query);
      each.classList.toggle("hopscope-seen", i === key);
    });
    told.replaceChildren(make("p", { class: "hopscope-where" },
      `${named(query)} ${sees} ${named(key)}`),
    facts([["edges", String(seen.flat().filter(Boolean).length)],
      ["changed", String(model.get("changed"))]]),
    make("p", { class: "hopscope-hint" }, "Edges are pairs of a token and one that it sees, itself "
      + "included, among the tokens shown: blue cells."));
  }

  function tellAnswers() {
    const mark = (correct) => (correct === null ? "" : correct ? "✓" : "✗");
    const expected = model.get("expected");
    const row = (tag, each) => make("tr", {}, ...each.map((text) => make(tag, {}, text)));
    answers.replaceChildren(make("p", {}, make("span", { class: "hopscope-hint" }, "expected answer: "),
      expected || "none is given"));
    run.disabled = false;
    if (!model.get("answers").length) return;
    answers.append(make("table", { class: "hopscope-hops" },
      row("th", ["mask", "the model says", "", "P(answer)", "rank"]),
      ...model.get("answers").map((each) => row("td", [each.mask, each.says, mark(each.correct),
        written(each.probability, "probability"), String(each.rank)]))));
  }

  function paint(query, key, value) {
    if (query !== key) seen[query][key] = value;  // a token always attends to itself
  }

  function paintBlock(query, key, value) {
    const [rows, columns] = [partOf(query), partOf(key)];
    for (let i = rows.start; i < rows.stop; i++) {
      for (let j = columns.start; j < columns.stop; j++) paint(i, j, value);
    }
  }

  function send() {
    model.set("seen", seen.map((row) => row.join("")));
    model.save_changes();
  }

  function cellOf(event) {
    const box = canvas.getBoundingClientRect();
    const place = (value) => Math.min(n - 1, Math.max(0, Math.floor(value / size)));
    return [place(event.clientY - box.top), place(event.clientX - box.left)];
  }

  // The cells between two cells, so that a quick stroke skips none.
  function* between([a, b], [c, d]) {
    const steps = Math.max(Math.abs(c - a), Math.abs(d - b), 1);
    for (let i = 0; i <= steps; i++) {
      yield [Math.round(a + ((c - a) * i) / steps), Math.round(b + ((d - b) * i) / steps)];
    }
  }

  const tellLink = () => link?.write({ cell: `${at[1]},${at[0]}` });

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    at = cellOf(event);
    if (!isLive) {
      drawMask();
      tell();
      tellLink();
      return;
    }
    canvas.setPointerCapture(event.pointerId);
    start = at;
    brush = seen[at[0]][at[1]] ? 0 : 1;
    (blocks ? paintBlock : paint)(...at, brush);
    drawMask();
    tell();
  });
  canvas.addEventListener("pointermove", (event) => {
    const next = cellOf(event);
    if (brush !== null && !blocks) for (const cell of between(start, next)) paint(...cell, brush);
    if (brush !== null) start = next;
    at = next;
    drawMask();
    tell();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => {
      if (brush === null) return;
      brush = null;
      send();
    });
  }
  canvas.addEventListener("keydown", (event) => {
    const step = STEP_OF[event.key];
    if (step) at = at.map((each, i) => Math.min(n - 1, Math.max(0, each + step[i])));
    else if (event.key === " " && isLive) {
      (blocks ? paintBlock : paint)(...at, seen[at[0]][at[1]] ? 0 : 1);
      send();
    } else return;
    event.preventDefault();
    event.stopPropagation();
    drawMask();
    tell();
    tellLink();
  });
  const onSeen = () => {
    seen = model.get("seen").map((row) => [...row].map(Number));
    drawMask();
    tell();
  };
  const onLayers = () => {
    shownLayers = model.get("layers");
    ["from layer", "to layer"].forEach((label, end) => {
      controls.querySelector(`select[aria-label="${label}"]`).value = String(shownLayers[end]);
    });
  };
  model.on("change:seen", onSeen);
  model.on("change:layers", onLayers);
  model.on("change:heads", tellHeads);
  model.on("change:changed", tell);
  model.on("change:answers", tellAnswers);
  model.on("change:asked", tellAnswers);
  drawMask();
  tellHeads();
  tell();
  tellAnswers();
  link?.follow((said) => {
    const [key, query] = (said.get("cell") ?? "").split(",").map(Number);
    if (!(seen[query]?.[key] >= 0)) return;
    at = [query, key];
    drawMask();
    tell();
  });
  return () => {
    model.off("change:seen", onSeen);
    model.off("change:layers", onLayers);
    model.off("change:heads", tellHeads);
    model.off("change:changed", tell);
    model.off("change:answers", tellAnswers);
    model.off("change:asked", tellAnswers);
  };
}
