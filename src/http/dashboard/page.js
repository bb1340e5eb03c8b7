// Refreshes what is marked data-live, and copies texts. Pages work without it.
(() => {
  "use strict";
  const EVERY = 10_000;
  const live = () => document.querySelectorAll("[id][data-live]");
  const asOf = document.getElementById("asof");
  let shown = Date.now();

  // What somebody is at stays as it is: the focus, a selection, what was typed, an opened answer.
  const isInUse = (element) => {
    const selection = document.getSelection();
    return element.contains(document.activeElement)
      || (selection && !selection.isCollapsed && selection.containsNode(element, true))
      || [...element.querySelectorAll("input")].some((field) => field.value !== field.defaultValue);
  };

  const refresh = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" }, cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const element of live()) {
        const next = page.getElementById(element.id);
        if (!next || isInUse(element) || next.outerHTML === element.outerHTML) continue;
        for (const opened of element.querySelectorAll("details[open]")) {
          next.querySelector(`#${CSS.escape(opened.id)}`)?.setAttribute("open", "");
        }
        element.replaceWith(document.importNode(next, true));
      }
      // The first incident and a resolution change which parts there are.
      for (const part of document.querySelectorAll("main > [id]")) {
        if (!page.getElementById(part.id) && !isInUse(part)) part.remove();
      }
      for (const part of page.querySelectorAll("main > [id]")) {
        if (document.getElementById(part.id)) continue;
        document.getElementById(part.previousElementSibling?.id)?.after(document.importNode(part, true));
      }
      document.title = page.title;
      document.getElementById("asof").classList.remove("stale");
      shown = Date.now();
    } catch {
      const stamp = document.getElementById("asof");
      const seconds = Math.round((Date.now() - shown) / 1000);
      stamp.classList.add("stale");
      stamp.textContent = `Lockwatch does not answer: this page is ${seconds} s old`;
    }
  };
  if (asOf && document.body.hasAttribute("data-refresh")) {
    setInterval(refresh, EVERY);
    document.addEventListener("visibilitychange", refresh);
  }

  for (const button of document.querySelectorAll("[data-copy]")) {
    const text = document.getElementById(button.dataset.copy);
    const status = document.querySelector(`[data-copied="${button.dataset.copy}"]`);
    button.hidden = false;
    button.addEventListener("click", async () => {
      text.select();
      try {
        await navigator.clipboard.writeText(text.value);
        status.textContent = "Copied.";
      } catch {
        // Only pages on HTTPS or localhost may; the text is selected.
        status.textContent = "Selected: copy it with Ctrl+C.";
      }
    });
  }
})();
