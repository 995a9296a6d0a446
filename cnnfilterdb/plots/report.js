"use strict";
// The page is complete without this script, which only sorts, filters, folds and switches what is there.
(() => {
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // ---- groupings: one at a time, remembered in the address
  const groupings = [...document.querySelectorAll(".grouping")];
  if (groupings.length > 1) {
    const buttons = groupings.map((grouping) => {
      const button = make("button", { type: "button", textContent: grouping.dataset.name });
      button.addEventListener("click", () => {
        choose(grouping);
        history.replaceState(null, "", `#by=${encodeURIComponent(grouping.dataset.name)}`);
      });
      return button;
    });
    const choose = (chosen) => {
      groupings.forEach((grouping, at) => {
        grouping.hidden = grouping !== chosen;
        buttons[at].setAttribute("aria-pressed", String(grouping === chosen));
      });
    };
    const fromAddress = () => {
      const name = decodeURIComponent(location.hash.replace(/^#by=/, ""));
      choose(groupings.find((grouping) => grouping.dataset.name === name) ?? groupings[0]);
    };
    const bar = make("div", { className: "switch", role: "group", ariaLabel: "Group the models by" }, ...buttons);
    document.querySelector("#groups h2").after(bar);
    addEventListener("hashchange", () => location.hash.startsWith("#by=") && fromAddress());
    fromAddress();
  }

  // ---- tables: sort by a heading, filter by words, fold what is long
  const key = (cell) => (cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort));
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1; // what is unknown comes last
    return a.localeCompare(b, undefined, { numeric: true });
  };

  for (const holder of document.querySelectorAll(".table")) {
    const body = holder.querySelector("tbody");
    const rows = [...body.rows];
    if (rows.length < 2) continue;
    const limit = Number(holder.dataset.fold ?? 0);
    const state = { folded: limit > 0 && rows.length > limit + 5, words: [] };
    const count = make("p", { className: "note", role: "status" });
    const unfold = make("button", { type: "button", className: "fold" });

    const show = () => {
      const matching = [...body.rows].filter((row) => {
        const text = row.textContent.toLowerCase();
        const kept = state.words.every((word) => text.includes(word));
        row.hidden = true;
        return kept;
      });
      const cut = state.folded && !state.words.length;
      matching.slice(0, cut ? limit : undefined).forEach((row) => { row.hidden = false; });
      unfold.hidden = !(limit && rows.length > limit + 5) || state.words.length > 0;
      unfold.textContent = state.folded ? `Show all ${rows.length}` : `Show only ${limit}`;
      count.textContent = state.words.length ? `${matching.length} of ${rows.length} ${holder.dataset.search}` : "";
    };
    unfold.addEventListener("click", () => { state.folded = !state.folded; show(); });

    const headings = [...holder.querySelectorAll("thead th")];
    headings.forEach((heading, at) => {
      const button = make("button", { type: "button", className: "sort", textContent: heading.textContent });
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const number = heading.classList.contains("number");
        const before = heading.getAttribute("aria-sort");
        const down = before ? before === "ascending" : number; // numbers: the largest first
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const known = (row) => !number || row.cells[at].dataset.sort !== undefined;
        const sorted = [...body.rows].sort((a, b) => {
          if (known(a) !== known(b)) return known(a) ? -1 : 1;
          const order = compare(key(a.cells[at]), key(b.cells[at]));
          return down ? -order : order;
        });
        body.append(...sorted);
        show();
      });
    });

    if (holder.dataset.search) {
      const box = make("input", { type: "search", placeholder: `Filter ${holder.dataset.search}` });
      box.setAttribute("aria-label", `Filter ${holder.dataset.search} by words`);
      box.addEventListener("input", () => {
        state.words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
        show();
      });
      holder.prepend(make("div", { className: "filter" }, box, count));
    }
    holder.append(unfold);
    show();
  }

  // ---- what is shown whole needs no hint that it scrolls
  const whole = new ResizeObserver((entries) => {
    for (const { target } of entries) target.classList.toggle("whole", target.scrollWidth <= target.clientWidth);
  });
  document.querySelectorAll(".scroll").forEach((part) => whole.observe(part));

  // ---- heat maps: the values under the pointer
  const tip = document.getElementById("tip");
  for (const map of document.querySelectorAll("svg.map")) {
    for (const rect of map.querySelectorAll("rect")) {
      const title = rect.querySelector("title");
      if (!title) continue;
      rect.dataset.tip = title.textContent;
      title.remove(); // otherwise the browser shows it a second time
    }
    map.addEventListener("pointermove", (event) => {
      const text = event.target.dataset?.tip;
      tip.hidden = !text;
      if (!text) return;
      tip.textContent = text;
      const room = document.documentElement.clientWidth - tip.offsetWidth - 12;
      tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, room))}px`;
      tip.style.top = `${event.clientY + 18}px`;
    });
    map.addEventListener("pointerleave", () => { tip.hidden = true; });
  }
})();
