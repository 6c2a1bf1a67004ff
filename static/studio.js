// The little that the page itself must know: where the reader is (kept in the URL), reading a curve under the pointer.
// Knows nothing of the services. Loaded from the head, before gradio draws anything.
(() => {
  const started = new URLSearchParams(location.search);

  const remember = (name, value) => {
    const url = new URL(location.href);
    if (value) url.searchParams.set(name, value);
    else url.searchParams.delete(name);
    if (url.href !== location.href) history.replaceState(history.state, "", url);
  };

  const currentTab = () => {
    const button = document.querySelector('[role="tab"][aria-selected="true"]');
    return button ? button.id.replace(/^tab-/, "").replace(/-button$/, "") : "";
  };

  // a curve's value at the pointer; points are [step, train, eval]
  const readCurve = (event) => {
    const chart = event.target.closest && event.target.closest(".chart .plot");
    document.querySelectorAll(".chart .readout.on").forEach((old) => { if (!chart || !chart.contains(old)) old.classList.remove("on"); });
    const svg = chart && chart.querySelector("svg");
    if (!svg) return;
    const box = svg.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    const points = JSON.parse(chart.dataset.points || "[]");
    const output = chart.querySelector(".readout");
    if (!points.length || share < 0 || share > 1) { output.classList.remove("on"); return; }
    const nearest = points.reduce((best, point) => (Math.abs(point[0] - share) < Math.abs(best[0] - share) ? point : best));
    output.textContent = nearest[1];
    output.style.left = `${nearest[0] * 100}%`;
    output.classList.toggle("flip", nearest[0] > 0.7);
    output.classList.add("on");
  };
  document.addEventListener("pointermove", readCurve, { passive: true });

  // the row that was asked for, once it is drawn
  const showMarked = () => setTimeout(() => {
    const row = document.querySelector(".examples .marked");
    if (row) row.scrollIntoView({ block: "center", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }, 60);

  // a menu that redraws the table it stands in keeps the focus, and the table its place
  let menu = { id: "", left: 0 };
  const tableOf = (element) => element.closest(".scroll");
  const leaveMenu = (element) => { menu = { id: element.id, left: (tableOf(element) || {}).scrollLeft || 0 }; };
  const backToMenu = () => setTimeout(() => {
    const again = document.getElementById(menu.id);
    if (!again) return;
    if (tableOf(again)) tableOf(again).scrollLeft = menu.left;
    if (document.activeElement === document.body) again.focus({ preventScroll: true });
  }, 30);

  // the newest words of a conversation stay in sight, unless the reader has scrolled back
  const follow = (box) => {
    let isPinned = true;
    const isAtEnd = () => box.scrollHeight - box.scrollTop - box.clientHeight < 48;
    box.addEventListener("scroll", () => { isPinned = isAtEnd(); }, { passive: true });
    new MutationObserver(() => { if (isPinned) box.scrollTop = box.scrollHeight; }).observe(box, { childList: true, subtree: true, characterData: true });
    box.scrollTop = box.scrollHeight;
  };
  new MutationObserver((_, looking) => {
    const box = document.getElementById("chat-scroll");
    if (box) { looking.disconnect(); follow(box); }
  }).observe(document, { childList: true, subtree: true });

  window.studio = {
    remember,
    showMarked,
    leaveMenu,
    backToMenu,
    currentTab,
    start: (names) => names.map((name) => started.get(name) || ""),
  };
})();
