// Keeps a page up to date, part by part, and copies texts. Pages work without it.
(() => {
  "use strict";
  const EVERY = 10_000;
  const PATIENCE = 8_000;
  const OLD = 25_000;
  const asOf = document.getElementById("asof");
  let renewedAt = Date.now();
  let underWay = false;

  document.documentElement.classList.add("scripted");

  // What somebody is at stays as it is: the focus, a selection, what was typed. A table that was merely
  // scrolled is not in use.
  const isInUse = (part) => {
    const selection = document.getSelection();
    const focus = document.activeElement;
    return (part.contains(focus) && !focus.classList.contains("scroll"))
      || (selection && !selection.isCollapsed && selection.containsNode(part, true))
      || [...part.querySelectorAll("input")].some((field) => field.value !== field.defaultValue);
  };

  // Puts a part in the place of an older one, as it was left: opened, scrolled, with the focus.
  const replace = (part, next) => {
    const scrolled = [...part.querySelectorAll(".scroll")];
    const focused = scrolled.indexOf(document.activeElement);
    part.replaceWith(next);
    next.querySelectorAll(".scroll").forEach((region, position) => {
      region.scrollLeft = scrolled[position]?.scrollLeft ?? 0;
      if (position === focused) region.focus({ preventScroll: true });
    });
    return next;
  };

  const renew = (part, next) => {
    if (!part.hasAttribute("data-live")) return part;
    for (const opened of part.querySelectorAll("details[open]")) {
      next.querySelector(`#${CSS.escape(opened.id)}`)?.setAttribute("open", "");
    }
    if (next.outerHTML === part.outerHTML) return part;
    const isHeld = isInUse(part);
    part.classList.toggle("held", isHeld);
    return isHeld ? part : replace(part, next);
  };

  // Parts come and go: with the first incident, and with a resolution.
  const take = (page) => {
    let last = null;
    for (const next of page.querySelectorAll("main > [id]")) {
      const part = document.getElementById(next.id);
      const own = document.importNode(next, true);
      if (part) {
        last = renew(part, own);
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
    asOf.replaceChildren(...document.importNode(page.getElementById("asof"), true).childNodes);
  };

  const stale = () => {
    if (asOf.classList.contains("stale")) return;
    asOf.classList.add("stale");
    asOf.setAttribute("role", "alert");
    asOf.prepend("Lockwatch does not answer. ");
  };

  const refresh = async () => {
    if (document.hidden || underWay) return;
    underWay = true;
    try {
      const headers = { accept: "text/html" };
      const signal = AbortSignal.timeout(PATIENCE);
      const answer = await fetch(location.href, { headers, signal, cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      take(new DOMParser().parseFromString(await answer.text(), "text/html"));
      asOf.classList.remove("stale");
      asOf.removeAttribute("role");
      renewedAt = Date.now();
    } catch {
      stale();
    } finally {
      underWay = false;
    }
  };

  if (document.body.hasAttribute("data-refresh")) {
    setInterval(refresh, EVERY);
    setInterval(() => { if (Date.now() - renewedAt > OLD) stale(); }, 1_000);
    document.addEventListener("visibilitychange", refresh);
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
      // Only pages on HTTPS or localhost may; the text is selected.
      status.textContent = "Selected: copy it with Ctrl+C.";
    }
  });
})();
