// What the theme leaves out: names for the landmark that it makes of every block of code, and the keyboard's way into what scrolls sideways.
function mend() {
  for (const nav of document.querySelectorAll("nav.md-code__nav:not([aria-label])")) {
    const place = nav.querySelector("[data-clipboard-target]")?.dataset.clipboardTarget ?? "";
    nav.setAttribute("aria-label", `Code ${place.match(/\d+/)?.[0] ?? ""}`);
  }
  for (const part of document.querySelectorAll("pre > code:not([tabindex]), .md-typeset__scrollwrap:not([tabindex])")) {
    part.setAttribute("tabindex", "0");
  }
}
mend();
new MutationObserver(mend).observe(document.body, { childList: true, subtree: true, attributeFilter: ["tabindex"] });
