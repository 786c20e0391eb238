// Helpers of all views: elements, and a model for pages without a kernel.

// The namespace of SVG, read from an element so that the page contains no URL.
const SVG = (() => {
  const holder = document.createElement("template");
  holder.innerHTML = "<svg></svg>";
  return holder.content.firstChild.namespaceURI;
})();

// Disables Jupyter's shortcuts at an element. Jupyter searches from the focused element upwards and
// handles a key as soon as the selector of a shortcut matches. Selectors such as `:focus` match at
// once, so each element that can be focused needs the attribute itself.
const OWN_KEYS = { "data-lm-suppress-shortcuts": "true" };
const FIELDS = new Set(["button", "input", "select"]);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  if (FIELDS.has(tag) || "tabindex" in attributes) attributes = { ...OWN_KEYS, ...attributes };
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function draw(tag, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

// The root of a view.
const VIEW = { class: "hopscope-view", ...OWN_KEYS };

// A text without the white space around it; with visible signs if it is only that.
const printable = (text) => text.trim()
  || text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣");

function facts(pairs) {
  const list = make("dl");
  for (const [name, value] of pairs) {
    list.append(make("dt", {}, name), make("dd", {}, printable(value)));
  }
  return list;
}

// A drop-down field with its label; `value` is the selected one of the options { value, label }.
function selector(label, options, value, onchange, name = "") {
  const select = make("select", { "aria-label": label, ...(name && { "data-name": name }) });
  for (const each of options) {
    const option = make("option", { value: each.value }, each.label);
    option.selected = each.value === value;
    select.append(option);
  }
  select.addEventListener("change", () => onchange(select.value));
  return make("label", {}, make("span", {}, label), select);
}

function button(label, onclick) {
  const element = make("button", { type: "button" }, label);
  element.addEventListener("click", onclick);
  return element;
}

// A stand-in with the methods of anywidget's model that views use, but `send`: no kernel answers.
function standIn(state) {
  const listeners = {};
  return {
    get: (name) => state[name],
    set(name, value) {
      state[name] = value;
      for (const each of listeners[`change:${name}`] ?? []) each();
    },
    on: (event, listener) => (listeners[event] ??= []).push(listener),
    off: (event, listener) => {
      listeners[event] = (listeners[event] ?? []).filter((each) => each !== listener);
    },
    save_changes() {},
  };
}
