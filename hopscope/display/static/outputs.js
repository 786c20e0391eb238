// Shows views in outputs of a notebook that hold a picture: HTML that can be read without a kernel.

// Adds, to the function that renders a view, that a model looks for the elements with its name and
// shows the view there, in place of the picture. An output that is written anew keeps its view.
function inOutputs(render) {
  function initialize({ model }) {
    const place = `[data-hopscope-view="${model.get("place")}"]`;
    const shown = [];  // of each view: its root, what stood in its place, and how to end it

    function show(output) {
      if (shown.some((each) => each.root.parentNode === output)) return;
      let view = shown.find((each) => !each.root.isConnected);
      if (!view) {
        view = { root: make("div"), focused: null };
        view.end = render({ model, el: view.root });
        view.root.addEventListener("focusin", (event) => { view.focused = event.target; });
        view.root.addEventListener("focusout", () => setTimeout(() => {
          if (!view.root.contains(document.activeElement)) view.focused = null;
        }));
        shown.push(view);
      }
      view.before = [...output.childNodes];
      const { focused } = view;
      output.replaceChildren(view.root);
      focused?.focus({ preventScroll: true });
    }

    function look(node) {
      if (node.matches?.(place)) show(node);
      node.querySelectorAll?.(place).forEach(show);
    }

    const watch = new MutationObserver((changes) => {
      for (const { addedNodes } of changes) addedNodes.forEach(look);
    });
    watch.observe(document.body, { childList: true, subtree: true });
    look(document.body);
    return () => {
      watch.disconnect();
      for (const { root, before, end } of shown) {
        end?.();
        root.replaceWith(...before);
      }
    };
  }
  return { initialize, render };
}
