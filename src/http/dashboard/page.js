// Refreshes a page part by part, and copies texts. Pages work without this script.
(() => {
  "use strict";
  const REFRESH_INTERVAL_MS = 10_000;
  const FETCH_TIMEOUT_MS = 8_000;
  const STALE_TIMEOUT_MS = 25_000;
  const asOf = document.getElementById("asof");
  let refreshedAt = Date.now();
  let isRefreshing = false;

  document.documentElement.classList.add("scripted");

  // A part with the focus, a selection or typed text is in use and must not change. A table that
  // was only scrolled is not in use.
  const isInUse = (part) => {
    const selection = document.getSelection();
    const focus = document.activeElement;
    return (part.contains(focus) && !focus.classList.contains("scroll"))
      || (selection && !selection.isCollapsed && selection.containsNode(part, true))
      || [...part.querySelectorAll("input")].some((field) => field.value !== field.defaultValue);
  };

  // Replaces a part, and keeps the scroll positions and the focus of its tables.
  const replacePart = (part, next) => {
    const scrolled = [...part.querySelectorAll(".scroll")];
    const focused = scrolled.indexOf(document.activeElement);
    part.replaceWith(next);
    next.querySelectorAll(".scroll").forEach((region, position) => {
      region.scrollLeft = scrolled[position]?.scrollLeft ?? 0;
      if (position === focused) region.focus({ preventScroll: true });
    });
    return next;
  };

  // Replaces a part that has changed and is not in use. Details stay open.
  const updatePart = (part, next) => {
    if (!part.hasAttribute("data-live")) return part;
    for (const opened of part.querySelectorAll("details[open]")) {
      next.querySelector(`#${CSS.escape(opened.id)}`)?.setAttribute("open", "");
    }
    if (next.outerHTML === part.outerHTML) return part;
    const isHeld = isInUse(part);
    part.classList.toggle("held", isHeld);
    return isHeld ? part : replacePart(part, next);
  };

  // Updates, adds and removes parts: the first incident adds some, a resolution removes some.
  const updatePage = (page) => {
    let last = null;
    for (const next of page.querySelectorAll("main > [id]")) {
      const part = document.getElementById(next.id);
      const own = document.importNode(next, true);
      if (part) {
        last = updatePart(part, own);
      } else {
        last ? last.after(own) : document.getElementById("main").prepend(own);
        last = own;
      }
    }
    for (const part of document.querySelectorAll("main > [id]")) {
      if (page.getElementById(part.id)) continue;
      if (isInUse(part)) part.classList.add("gone");
      else part.remove();
    }
    document.title = page.title;
    const time = document.importNode(page.getElementById("asof"), true);
    asOf.replaceChildren(...time.childNodes);
  };

  const markStale = () => {
    if (asOf.classList.contains("stale")) return;
    asOf.classList.add("stale");
    asOf.setAttribute("role", "alert");
    asOf.prepend("Lockwatch does not answer. ");
  };

  const refresh = async () => {
    if (document.hidden || isRefreshing) return;
    isRefreshing = true;
    try {
      const headers = { accept: "text/html" };
      const signal = AbortSignal.timeout(FETCH_TIMEOUT_MS);
      const answer = await fetch(location.href, { headers, signal, cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      updatePage(new DOMParser().parseFromString(await answer.text(), "text/html"));
      asOf.classList.remove("stale");
      asOf.removeAttribute("role");
      refreshedAt = Date.now();
    } catch {
      markStale();
    } finally {
      isRefreshing = false;
    }
  };

  if (document.body.hasAttribute("data-refresh")) {
    setInterval(refresh, REFRESH_INTERVAL_MS);
    setInterval(() => {
      // A hidden page does not refresh, so its age says nothing about Lockwatch.
      if (document.hidden) return;
      if (Date.now() - refreshedAt > STALE_TIMEOUT_MS) markStale();
    }, 1_000);
    document.addEventListener("visibilitychange", () => {
      refreshedAt = Date.now();
      refresh();
    });
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copy]");
    if (!button) return;
    const text = document.getElementById(button.dataset.copy);
    const status = document.querySelector(`[data-copied="${button.dataset.copy}"]`);
    text.select();
    try {
      await navigator.clipboard.writeText(text.value);
      status.textContent = "Copied.";
    } catch {
      // Browsers allow the clipboard only on HTTPS or localhost. The text is selected.
      status.textContent = "Selected: copy it with Ctrl+C.";
    }
  });
})();
