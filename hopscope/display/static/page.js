// Shows the grids of an HTML page, which holds all of their slices: no kernel and no server.

for (const data of document.querySelectorAll("script[data-hopscope]")) {
  const el = document.createElement("div");
  renderGrid({ model: standIn(JSON.parse(data.textContent)), el });
  data.previousElementSibling.replaceWith(el);  // the picture that stands there without scripts
}
