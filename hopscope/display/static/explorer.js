// The prompt explorer: a typed two-hop query, its spans, both hops, logit lens and back-patching.

const PARTS = { e1: "entity", r1: "first hop", r2: "second hop" };
const FORMS = { first_hop: "first hop", second_hop: "second hop", two_hop: "two hops" };

function renderExplorer({ model, el, link }) {
  const isLive = Boolean(model.send);  // a kernel answers
  const field = (name, label, hint, size) => {
    const input = make("input", { type: "text", "aria-label": label, placeholder: hint, size });
    input.value = model.get("query")[name] ?? "";
    input.addEventListener("keydown", (event) => {
      event.stopPropagation();  // not a shortcut of the notebook
      if (event.key === "Enter") ask();
    });
    input.addEventListener("input", tellStale);
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
    tellStale();
    if (value !== "") ask();
  });
  const status = make("p", { class: "hopscope-hint", role: "status", "aria-live": "polite" });
  const spans = make("p", { class: "hopscope-tokens" });
  const hops = make("table", { class: "hopscope-hops" });
  const warnings = make("div", { class: "hopscope-warnings", role: "status" });
  const [lens, patches] = [make("div"), make("div")];
  const found = make("div", {}, spans, hops, warnings, lens, patches);
  const asked = Object.entries(model.get("query")).filter(([, value]) => value);
  el.append(make("div", VIEW, ...(isLive ? [
    make("div", { class: "hopscope-controls" }, inputs.text, go, labelled("bridge"),
      labelled("answer"), ...(examples.length ? [chooser] : [])),
    status] : [facts(asked.map(([name, value]) => [name === "text" ? "query" : name, value]))]),
  found));

  const typed = () => Object.fromEntries(
    Object.entries(inputs).map(([name, input]) => [name, input.value.trim()]));

  // Results are faint while another query than theirs is typed.
  function tellStale() {
    const asked = model.get("query"), now = typed();
    const isStale = isLive && "text" in asked
      && Object.keys(now).some((name) => now[name] !== asked[name].trim());
    found.classList.toggle("hopscope-stale", isStale);
    found.title = isStale ? `of the query “${asked.text}”` : "";
  }

  function ask() {
    if (go.disabled) return;  // one query at a time
    const query = typed();
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
    tellStale();
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
      make("td", {}, each.correct === null ? "" : each.correct ? "✓" : "✗"),
      make("td", { class: "hopscope-hint" }, each.note))));
  }

  function tellWarnings() {
    warnings.replaceChildren(...model.get("warnings").map((each) => make("p", {}, `⚠ ${each}`)));
  }

  // An embedded grid. It is kept while its axes are the same, so that the selected cell stays.
  function inside(place, name, link) {
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
        renderGrid({ model: child, el: place, link });
        made = spec;
      }
    };
  }

  const watched = {
    "change:status": tell, "change:busy": tell, "change:failed": tell,
    "change:query": tellQuery, "change:tokens": tellTokens, "change:answers": tellHops,
    "change:warnings": tellWarnings, "change:lens": inside(lens, "lens", link?.inner("lens")),
    "change:patches": inside(patches, "patches", link),
  };
  for (const [event, listener] of Object.entries(watched)) {
    model.on(event, listener);
    listener();
  }
  return () => {
    for (const [event, listener] of Object.entries(watched)) model.off(event, listener);
  };
}
