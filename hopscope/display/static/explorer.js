// The prompt explorer: a typed two-hop query, its spans, both hops, logit lens and back-patching.

const PARTS = { e1: "entity", r1: "first hop", r2: "second hop" };
const FORMS = { first_hop: "first hop", second_hop: "second hop", two_hop: "two hops" };

function renderExplorer({ model, el }) {
  const field = (name, label, hint, size) => {
    const input = make("input", { type: "text", "aria-label": label, placeholder: hint, size });
    input.value = model.get("query")[name] ?? "";
    input.addEventListener("keydown", (event) => {
      event.stopPropagation();  // not a shortcut of the notebook
      if (event.key === "Enter") ask();
    });
    return input;
  };
  const inputs = {
    text: field("text", "query", "The spouse of [the performer of [Imagine]] is", 64),
    bridge: field("bridge", "bridge", "as the model says", 20),
    answer: field("answer", "answer", "as the model says", 20),
  };
  const go = button("Ask", () => ask());
  const labelled = (name) => make("label", {}, make("span", {}, name), inputs[name]);
  const examples = model.get("examples");
  const chooser = selector("or one of", [{ value: "", label: "…" }, ...examples.map((each, i) =>
    ({ value: String(i), label: each.text.replace(/[[\]]/g, "") }))], "", (value) => {
    for (const [name, input] of Object.entries(inputs)) input.value = examples[value]?.[name] ?? "";
    if (value !== "") ask();
  });
  const status = make("p", { class: "hopscope-hint", role: "status", "aria-live": "polite" });
  const spans = make("p", { class: "hopscope-tokens" });
  const hops = make("table", { class: "hopscope-hops" });
  const [lens, patches] = [make("div"), make("div")];
  el.append(make("div", VIEW,
    make("div", { class: "hopscope-controls" }, inputs.text, go, labelled("bridge"),
      labelled("answer"), ...(examples.length ? [chooser] : [])),
    status, spans, hops, make("div", { class: "hopscope-body" }, lens, patches)));

  function ask() {
    if (go.disabled) return;  // one query at a time
    const query = Object.fromEntries(
      Object.entries(inputs).map(([name, input]) => [name, input.value.trim()]));
    go.disabled = true;
    model.send({ type: "ask", query });
  }

  function tell() {
    status.textContent = model.get("status");
    status.classList.toggle("hopscope-error", model.get("failed"));
    go.disabled = model.get("busy");
  }

  function tellQuery() {
    for (const [name, input] of Object.entries(inputs)) {
      if (document.activeElement !== input) input.value = model.get("query")[name] ?? input.value;
    }
  }

  function tellTokens() {
    spans.replaceChildren(...model.get("tokens").map((each) => {
      const token = make("span", { class: `hopscope-token hopscope-${each.part}` }, each.text);
      if (each.name) token.append(make("sub", {}, each.name));
      return token;
    }));
    if (!model.get("tokens").length) return;
    spans.append(make("span", { class: "hopscope-hint" }, ...Object.entries(PARTS).map(
      ([part, name]) => make("span", { class: `hopscope-token hopscope-${part}` }, name))));
  }

  function tellHops() {
    hops.replaceChildren(...model.get("answers").map((each) => make("tr", {},
      make("th", { scope: "row" }, FORMS[each.form]), make("td", {}, each.prompt),
      make("td", { class: "hopscope-says" }, each.says),
      make("td", {}, each.correct === null ? "" : each.correct ? "✓" : "✗"))));
  }

  // An embedded grid. It is kept while its axes are the same, so that the selected cell stays.
  function inside(place, name) {
    let child = null, made = "";
    return () => {
      const state = model.get(name);
      const spec = JSON.stringify(state.spec ?? null);
      if (!state.spec) {
        place.replaceChildren();
        made = "";
      } else if (spec === made) {
        child.set("slices", state.slices);
      } else {
        place.replaceChildren();
        child = standIn({ ...state });
        renderGrid({ model: child, el: place });
        made = spec;
      }
    };
  }

  const watched = {
    "change:status": tell, "change:busy": tell, "change:failed": tell,
    "change:query": tellQuery, "change:tokens": tellTokens, "change:answers": tellHops,
    "change:lens": inside(lens, "lens"), "change:patches": inside(patches, "patches"),
  };
  for (const [event, listener] of Object.entries(watched)) {
    model.on(event, listener);
    listener();
  }
  return () => {
    for (const [event, listener] of Object.entries(watched)) model.off(event, listener);
  };
}
