// Shows the grids of an HTML page, which contains all slices and needs no kernel or server.

for (const data of document.querySelectorAll("script[data-hopscope]")) {
  const el = document.createElement("div");
  renderGrid({ model: standIn(JSON.parse(data.textContent)), el });
  data.previousElementSibling.replaceWith(el);  // the image for pages without scripts
}
