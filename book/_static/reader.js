// What scrolls sideways can be reached by the keyboard, at every width.
(() => {
  const SCROLLS = ".output, .pst-scrollable-table-container, .highlight pre, div.math, mjx-container, #explorer-table, .bd-article table";
  const mark = () => {
    for (const box of document.querySelectorAll(SCROLLS)) {
      if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
      else if (!box.id) box.removeAttribute("tabindex");
    }
  };
  addEventListener("load", mark);
  addEventListener("resize", mark);
  document.addEventListener("toggle", mark, true);
})();
