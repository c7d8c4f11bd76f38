/* Theme and printing: what every report has, with or without laws. */
(() => {
  "use strict";

  function theme() {
    const button = document.getElementById("theme"), order = ["auto", "light", "dark"];
    let now = "auto";
    try { now = localStorage.getItem("opmix-theme") || "auto"; } catch { /* private mode: start with auto */ }
    const show = () => {
      document.documentElement.dataset.theme = now;
      button.textContent = `Theme: ${now}`;
    };
    button.addEventListener("click", () => {
      now = order[(order.indexOf(now) + 1) % 3];
      try { localStorage.setItem("opmix-theme", now); } catch { /* not kept, still applied */ }
      show();
    });
    button.hidden = false;
    show();
  }

  /* What is folded on screen is open on paper. */
  function printing() {
    let opened = [];
    addEventListener("beforeprint", () => {
      opened = [...document.querySelectorAll("details:not([open])")];
      opened.forEach((d) => { d.open = true; });
    });
    addEventListener("afterprint", () => opened.forEach((d) => { d.open = false; }));
  }

  theme();
  printing();
})();
