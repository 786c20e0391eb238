// Shows the views of an HTML page, which contains all data and needs no kernel or server.

const RENDER = { grid: renderGrid, explorer: renderExplorer, mask: renderMask };

// What the page's address says, behind #, of one of its views: the option of each choice, and a cell.
function linkTo(view) {
  const read = () => {
    const said = new URLSearchParams(location.hash.slice(1));
    return (said.get("view") ?? "") === view ? said : new URLSearchParams();
  };
  return {
    write(said) {
      const all = new URLSearchParams({ ...(view && { view }), ...said });
      const hash = all.toString().replaceAll("%2C", ",").replaceAll("+", "%20");
      try {
        history.replaceState(null, "", `#${hash}`);
      } catch { /* the page is shown in a frame that has no address of its own */ }
    },
    follow(listener) {
      window.addEventListener("hashchange", () => listener(read()));
      listener(read());
    },
    inner: (name) => linkTo([view, name].filter(Boolean).join(".")),
  };
}

document.querySelectorAll("script[data-hopscope]").forEach((data, i) => {
  const el = document.createElement("div");
  data.previousElementSibling.replaceWith(el);  // the image for pages without scripts
  const [model, link] = [standIn(JSON.parse(data.textContent)), linkTo(i ? String(i + 1) : "")];
  RENDER[data.dataset.hopscope]({ model, el, link });
});
