// The graph of one head: an arrow from each token that is read to the one that reads it.

const MOST_ARROWS = 1500;
const [STEP, REACH, LABEL] = [20, 200, 130]; // pixels: a token's height, the arrows, the words

const draw = (tag, attributes) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
};

class Graph {
  constructor(name) {
    this.tip = `tip-${name}`;
    this.arrows = [];
    this.held = null;
    this.least = make("input", { type: "range", min: 0.02, max: 1, step: 0.01, value: 0.3 });
    this.count = make("output");
    this.svg = draw("svg", { role: "img" });
    const label = make("label", {}, "Weights of at least ", this.least);
    const box = { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Graph" };
    const about = "An arrow goes from the token that is read to the one that reads it, the thicker "
      + "the larger the weight. A locked token keeps its own arrows only.";
    this.box = make("details", { className: "graph" }, make("summary", {}, "Who sends to whom"));
    this.box.append(
      make("p", { className: "controls" }, label, this.count),
      make("p", { className: "source" }, about),
      make("div", box, this.svg),
    );
    this.least.addEventListener("input", () => this.draw());
    this.box.addEventListener("toggle", () => this.draw());
  }

  show(text, weights) {
    Object.assign(this, { text, weights });
    this.draw();
  }

  /** Fades the arrows that do not touch a token; null: none. */
  hold(token) {
    this.held = token;
    for (const { path, q, k } of this.arrows) {
      path.classList.toggle("faint", token !== null && q !== token && k !== token);
    }
  }

  draw() {
    if (!this.box.open || !this.weights) return;
    const { size, causal } = this.text, least = Number(this.least.value);
    const all = range(size * size).filter((at) => this.weights[at] / 255 >= least);
    all.sort((a, b) => this.weights[b] - this.weights[a]);
    const found = `${least.toFixed(2)}: ${several(all.length, "arrow")}`;
    const cut = all.length > MOST_ARROWS ? `, the strongest ${MOST_ARROWS} drawn` : "";
    this.count.textContent = found + cut;
    // Of a causal pattern all arrows go down; otherwise those that go up stand on the left.
    const left = causal ? 0 : REACH / 2, width = LABEL + REACH, height = STEP * size + 4;
    const sides = [left, left + LABEL], reach = causal ? REACH : REACH / 2;
    this.arrows = all.slice(0, MOST_ARROWS).map((at) => {
      const q = Math.floor(at / size), k = at % size, weight = this.weights[at] / 255;
      const path = draw("path", {
        d: this.arrow(q, k, sides, reach), "stroke-width": 0.5 + 2.5 * weight,
        "stroke-opacity": 0.25 + 0.75 * weight, "marker-end": `url(#${this.tip})`,
      });
      return { path, q, k };
    });
    const paths = this.arrows.map(({ path }) => path);
    this.svg.replaceChildren(arrowhead(this.tip), ...this.words(sides, causal), ...paths);
    const attributes = { width, height, viewBox: `0 0 ${width} ${height}`, "aria-label": `At least ${found}` };
    for (const [name, value] of Object.entries(attributes)) this.svg.setAttribute(name, value);
    this.hold(this.held);
  }

  arrow(q, k, [left, right], reach) {
    const [from, to] = [STEP * k + 11, STEP * q + 9];
    if (q === k) return `M${right} ${to}c26-12 26 16 2 6`;
    const bend = 24 + (reach - 36) * Math.sqrt(Math.abs(q - k) / this.text.size);
    const [side, x] = q > k ? [right, right + bend] : [left, left - bend];
    return `M${side} ${from}C${x} ${from} ${x} ${to} ${side} ${to}`;
  }

  words([left, right], causal) {
    const place = causal ? { x: right - 5, "text-anchor": "end" }
      : { x: (left + right) / 2, "text-anchor": "middle" };
    return this.text.tokens.map((token, i) => {
      const text = draw("text", { ...place, y: STEP * i + 14 }), name = draw("tspan", {});
      name.textContent = short(token.trim() || token, 14);
      text.append(name, ` ${i}`);
      return text;
    });
  }
}

function arrowhead(id) {
  const head = draw("marker", {
    id, viewBox: "0 0 6 6", refX: 5.5, refY: 3, orient: "auto",
    markerWidth: 6, markerHeight: 6, markerUnits: "userSpaceOnUse",
  });
  head.append(draw("path", { d: "M0 0L6 3L0 6z" }));
  return head;
}
