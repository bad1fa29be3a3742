// Looks at the page again every few seconds and takes over the part that is marked with data-live (seconds).
// A part that somebody is in the middle of (focus, selection) is left alone; a hidden page asks for nothing.
(() => {
  const MOST_FAILURES = 5;
  let failures = 0;
  const busy = (part) =>
    part.contains(document.activeElement) ||
    (!getSelection().isCollapsed && part.contains(getSelection().anchorNode));

  async function look(part) {
    const answer = await fetch(location.href, { credentials: "same-origin", redirect: "error" });
    if (!answer.ok) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById(part.id);
    if (!fresh || busy(part)) return part;
    if (fresh.innerHTML !== part.innerHTML) part.replaceChildren(...fresh.childNodes);
    if (fresh.dataset.live) part.dataset.live = fresh.dataset.live;
    else delete part.dataset.live;
    return part;
  }

  function wait(part) {
    if (!part.dataset.live || failures >= MOST_FAILURES) return;
    setTimeout(async () => {
      if (!document.hidden) {
        try {
          await look(part);
          failures = 0;
        } catch {
          failures += 1;
        }
      }
      wait(part);
    }, Number(part.dataset.live) * 1000);
  }

  document.querySelectorAll("[data-live]").forEach(wait);
})();
