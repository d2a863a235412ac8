// The drawing of one head: a map of weights with its tokens on both axes, or lines between two
// columns of tokens. It can be saved as a picture that needs no page.

const MOST_LINES = 1500;
// Pixels of the lines: the height of a token, the lines, the words beside them, the heading above.
const [STEP, REACH, LABEL, TOP] = [20, 150, 110, 22];
// Pixels of the map: its edge, the words beside it, a line of them.
const [EDGE, MARGIN, LEAST_STEP] = [400, 84, 11];
const SCALE = 3; // pixels of a saved picture for one of the page
const STYLES = (
  "fill stroke stroke-width stroke-opacity opacity font-size text-anchor").split(" ");
const SVG = "http://www.w3.org/2000/svg";
const ROOTS = Float32Array.from({ length: 256 }, (_, code) => Math.sqrt(code / 255));

const draw = (tag, attributes, ...children) => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const label = (token) => short(token.trim() || token, 13);

/** Queries downwards, keys to the right; where cells are joined, the largest weight shows. */
function paint(canvas, weights, size, edge = size) {
  const [red, green, blue] = getComputedStyle(canvas).color.match(/\d+/g).map(Number);
  canvas.width = canvas.height = edge;
  const context = canvas.getContext("2d"), image = context.createImageData(edge, edge);
  for (let q = 0; q < size; q += 1) {
    const row = Math.floor((q * edge) / size) * edge;
    for (let k = 0; k < size; k += 1) {
      const alpha = Math.round(255 * ROOTS[weights[q * size + k]]);
      const at = 4 * (row + Math.floor((k * edge) / size));
      if (alpha <= image.data[at + 3]) continue;
      image.data[at] = red; image.data[at + 1] = green; image.data[at + 2] = blue;
      image.data[at + 3] = alpha;
    }
  }
  context.putImageData(image, 0, 0);
}

class Drawing {
  constructor() {
    this.matrix = make("canvas", { className: "matrix", role: "img" });
    this.cross = [make("i"), make("i")]; // through the token that is looked at
    this.axes = draw("svg", { class: "axes", viewBox: `0 0 ${EDGE} ${EDGE}`, "aria-hidden": "true" });
    const cells = make("div", { className: "cells" }, this.matrix, ...this.cross);
    this.map = make("div", { className: "square" }, this.axes, cells);
    this.svg = draw("svg", { role: "img" });
    const region = { className: "scroll", tabIndex: 0, role: "region" };
    this.lines = make("div", { ...region, hidden: true }, this.svg);
    this.paths = [];
    this.node = make("div", { className: "drawing" }, this.map, this.lines);
  }

  /** Draws a head as "map" or "lines"; of lines, those of weights of at least `least`. */
  show(name, text, weights, mode, least) {
    Object.assign(this, { name, text, weights, mode });
    this.map.hidden = mode !== "map";
    this.lines.hidden = mode === "map";
    if (mode === "map") this.drawMap();
    else this.drawLines(least);
  }

  drawMap() {
    const { tokens, size } = this.text, cell = (EDGE - MARGIN) / size;
    paint(this.matrix, this.weights, size);
    this.matrix.ariaLabel = `Pattern of ${this.name}: queries downwards, keys to the right; `
      + "the tokens beside it tell the same";
    const shown = range(size).filter((i) => i % Math.ceil(LEAST_STEP / cell) === 0);
    const words = shown.flatMap((i) => {
      const [beside, at] = [MARGIN - 5, MARGIN + (i + 0.5) * cell];
      const turned = { x: 0, y: 0, transform: `translate(${at + 3.5} ${beside}) rotate(-90)` };
      return [
        draw("text", { x: beside, y: at + 3.5, "text-anchor": "end" }, label(tokens[i])),
        draw("text", turned, label(tokens[i])),
      ];
    });
    const titles = [["reads ↓", MARGIN - 20], ["read →", MARGIN - 5]].map(([title, y]) => draw(
      "text", { class: "title", x: MARGIN - 5, y, "text-anchor": "end" }, title,
    ));
    this.axes.replaceChildren(...titles, ...words);
  }

  drawLines(least) {
    const { size, tokens } = this.text, width = 2 * LABEL + REACH, height = TOP + STEP * size;
    const all = range(size * size).filter((at) => this.weights[at] / 255 >= least);
    all.sort((a, b) => this.weights[b] - this.weights[a]);
    const [left, right, middle] = [LABEL, LABEL + REACH, LABEL + REACH / 2];
    this.paths = all.slice(0, MOST_LINES).map((at) => {
      const q = Math.floor(at / size), k = at % size, weight = this.weights[at] / 255;
      const [from, to] = [q, k].map((i) => TOP + STEP * (i + 0.5));
      const d = `M${left} ${from}C${middle} ${from} ${middle} ${to} ${right} ${to}`;
      const strokes = { "stroke-width": 0.5 + 2.5 * weight, "stroke-opacity": 0.2 + 0.8 * weight };
      return { path: draw("path", { d, ...strokes }), q, k };
    });
    const column = (x, anchor, title) => [
      draw("text", { class: "title", x, y: 12, "text-anchor": anchor }, title),
      ...tokens.map((token, i) => draw(
        "text", { x, y: TOP + STEP * (i + 0.5) + 4, "text-anchor": anchor }, label(token),
      )),
    ];
    this.count = `${several(all.length, "line")}`
      + (all.length > MOST_LINES ? `, the strongest ${MOST_LINES} drawn` : "");
    const words = [...column(left - 6, "end", "reads"), ...column(right + 6, "start", "is read")];
    this.svg.replaceChildren(...words, ...this.paths.map(({ path }) => path));
    const about = `Lines of ${this.name} from the token that reads to the one that is read, of `
      + `weights of at least ${least.toFixed(2)}: ${this.count}`;
    this.lines.ariaLabel = `Lines of ${this.name}`;
    const attributes = { width, height, viewBox: `0 0 ${width} ${height}`, "aria-label": about };
    for (const [name, value] of Object.entries(attributes)) this.svg.setAttribute(name, value);
  }

  /** Marks a token; where it is locked, lines that do not touch it fade. */
  point(at, held) {
    for (const [i, side] of ["top", "left"].entries()) {
      this.cross[i].style[side] = `${(100 * (at + 0.5)) / this.text.size}%`;
    }
    for (const { path, q, k } of this.paths) {
      path.classList.toggle("faint", held !== null && q !== held && k !== held);
    }
  }

  /** The drawing as an SVG element for a file: what the style sheet says is written into it. */
  alone() {
    const shown = this.mode === "map" ? this.axes : this.svg, copy = shown.cloneNode(true);
    const nodes = [...shown.querySelectorAll("*")];
    [...copy.querySelectorAll("*")].forEach((node, i) => {
      const style = getComputedStyle(nodes[i]);
      for (const name of STYLES) node.setAttribute(name, style.getPropertyValue(name));
      node.removeAttribute("class");
    });
    const [, , width, height] = copy.getAttribute("viewBox").split(" ").map(Number), head = 26;
    const page = getComputedStyle(document.body), words = { fill: page.color, "font-size": "13px" };
    const title = draw("text", { x: 6, y: 17, ...words }, `${this.name}`);
    const body = draw("g", { transform: `translate(0 ${head})` }, ...copy.childNodes);
    if (this.mode === "map") body.append(this.cells());
    return draw(
      "svg",
      { xmlns: SVG, width, height: height + head, viewBox: `0 0 ${width} ${height + head}`,
        "font-family": "system-ui, sans-serif" },
      draw("rect", { width: "100%", height: "100%", fill: page.backgroundColor }), title, body,
    );
  }

  /** The cells as rectangles, one for each weight that is not zero, of one colour. */
  cells() {
    const { size } = this.text, cell = (EDGE - MARGIN) / size;
    const fill = getComputedStyle(this.matrix).color;
    const group = draw("g", { fill, "shape-rendering": "crispEdges" });
    this.weights.forEach((code, at) => {
      if (!code) return;
      const [x, y] = [at % size, Math.floor(at / size)].map((i) => (MARGIN + i * cell).toFixed(2));
      const opacity = ROOTS[code].toFixed(3), edge = cell.toFixed(2);
      group.append(draw("rect", { x, y, width: edge, height: edge, "fill-opacity": opacity }));
    });
    return group;
  }

  async save(kind, file) {
    const svg = this.alone(), text = new XMLSerializer().serializeToString(svg);
    const blob = new Blob([text], { type: "image/svg+xml" });
    deliver(kind === "svg" ? blob : await pixels(text, svg), `${file}.${kind}`);
  }
}

/** The pixels of an SVG, as a PNG. */
async function pixels(text, svg) {
  const image = new Image(), canvas = make("canvas");
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  canvas.width = SCALE * svg.getAttribute("width");
  canvas.height = SCALE * svg.getAttribute("height");
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
}

function deliver(blob, name) {
  const address = URL.createObjectURL(blob);
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
