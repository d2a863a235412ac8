"use strict";
// What moves on every page: tables that sort and filter, tokens that tell their value. drawing.js and
// viewer.js follow in the same script and build on this. Words reach the page as text nodes only,
// and nothing is ever fetched.

const LONG_TABLE = 12; // rows; longer ones get a filter

const make = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const button = (text, act) => {
  const node = make("button", { type: "button" }, text);
  node.addEventListener("click", act);
  return node;
};
const range = (n) => Array.from({ length: n }, (_, i) => i);
const several = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const byText = new Intl.Collator("en", { numeric: true }).compare;

/** One item of a box is a tab stop; arrow keys, Home and End move the focus from there. */
function rove(box, selector, columns = () => 0) {
  let stop = null;
  const take = (item) => {
    if (stop) stop.tabIndex = -1;
    stop = item ?? null;
    if (stop) stop.tabIndex = 0;
  };
  box.addEventListener("focusin", (event) => take(event.target.closest(selector)));
  box.addEventListener("keydown", (event) => {
    const items = [...box.querySelectorAll(selector)];
    const at = items.indexOf(event.target), down = columns();
    const to = {
      ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: items.length - 1,
      ...(down ? { ArrowUp: at - down, ArrowDown: at + down } : {}),
    }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    items[to]?.focus();
  });
  return take;
}

// ---- Tables

const asNumber = (text) => {
  const plain = text.replaceAll("−", "-").replace(/[,%]/g, "");
  return { "∞": Infinity, "-∞": -Infinity }[plain] ?? Number.parseFloat(plain);
};

function sorted(rows, column, order) {
  const numeric = rows[0].cells[column].classList.contains("n");
  const sign = order === "descending" ? -1 : 1;
  const keys = new Map(rows.map((row) => {
    const text = row.cells[column].textContent;
    return [row, numeric ? asNumber(text) : text];
  }));
  const compare = (a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    if (!numeric) return sign * byText(x, y);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // none: last
    return x === y ? 0 : sign * (x < y ? -1 : 1);
  };
  return [...rows].sort(compare);
}

/** Headings sort (up, down, as it was); a long table gets a filter. */
function dressTable(table) {
  const body = table.tBodies[0], rows = [...body.rows], headings = [...table.tHead.rows[0].cells];
  if (rows.length < 2) return;
  headings.forEach((heading, column) => {
    heading.append(button(heading.textContent, () => {
      const order = { ascending: "descending", descending: null }[heading.ariaSort];
      for (const one of headings) one.removeAttribute("aria-sort");
      if (order !== null) heading.ariaSort = order ?? "ascending";
      body.append(...(order === null ? rows : sorted(rows, column, heading.ariaSort)));
    }));
    heading.firstChild.remove();
  });
  if (rows.length <= LONG_TABLE) return;
  const text = make("input", { type: "search" }), count = make("output");
  text.addEventListener("input", () => {
    const wanted = text.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    const left = rows.filter((row) => !row.hidden).length;
    count.textContent = wanted ? `${left} of ${several(rows.length, "row")}` : "";
  });
  const label = make("label", {}, "Filter these rows ", text);
  table.parentElement.before(make("p", { className: "filter" }, label, count));
}

// ---- Text with a value for each token

function dressText(figure) {
  const hint = "Point at a token, or move to it by keyboard, to read its value; "
    + "click or Enter holds it.";
  const readout = make("output", { className: "readout" }, hint);
  let held = null;
  const tell = (token) => {
    readout.replaceChildren(quoted(token.textContent), `: ${token.dataset.value || "no value"}`);
  };
  for (const text of figure.querySelectorAll(".text")) {
    for (const span of text.querySelectorAll(".token")) {
      const token = button(span.textContent, () => {
        if (held) held.ariaPressed = "false";
        held = held === token ? null : token;
        if (held) held.ariaPressed = "true";
        tell(token);
      });
      Object.assign(token, { className: span.className, tabIndex: -1, ariaPressed: "false" });
      token.dataset.value = span.dataset.value;
      span.replaceWith(token);
    }
    text.role = "group";
    text.ariaLabel = "Tokens; arrow keys move";
    rove(text, ".token")(text.querySelector(".token"));
    for (const event of ["focusin", "pointerover"]) {
      text.addEventListener(event, ({ target }) => {
        if (target.matches(".token") && !held) tell(target);
      });
    }
  }
  figure.querySelector(".legend").before(readout);
}

/** A token between quotation marks, kept from turning the words around it. */
const quoted = (token) => make("bdi", { className: "quoted" }, `“${token.trim() || token}”`);

document.querySelectorAll("main table").forEach(dressTable);
document.querySelectorAll(".shaded").forEach(dressText);

// ---- Links within the page

/** Opens what is folded around the place that the address names. */
function unfold() {
  const place = document.getElementById(location.hash.slice(1));
  if (!place) return;
  for (let one = place.parentElement; one; one = one.parentElement) {
    if (one.matches("details")) one.open = true;
  }
  place.scrollIntoView();
}
addEventListener("hashchange", unfold);
addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href^='#']");
  if (!link || location.protocol !== "about:") return;
  event.preventDefault(); // in a notebook's frame an address would be one of the page around it
  location.hash = link.getAttribute("href");
});
unfold();
