// The viewer of attention patterns: a wall of all heads, one of them opened, others beside it.

const MOST_PARTNERS = 5;
const TILE_EDGE = 64; // cells of a small picture

const choice = (label, options, act) => {
  const select = make("select", {}, ...options.map(([value, text]) => new Option(text, value)));
  select.addEventListener("change", act);
  return [make("label", {}, `${label} `, select), select];
};

/** The weights of one head: bytes, row by row, size × size. */
async function unpack(piece, size, causal) {
  const bytes = Uint8Array.from(atob(piece), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const packed = new Uint8Array(await new Response(stream).arrayBuffer());
  if (!causal) return packed;
  const weights = new Uint8Array(size * size);
  for (let q = 0, at = 0; q < size; at += q + 1, q += 1) {
    weights.set(packed.subarray(at, at + q + 1), q * size);
  }
  return weights;
}

class Viewer {
  constructor(box) {
    this.data = JSON.parse(box.querySelector("script").textContent);
    const { layers, heads, labels, pages, index } = this.data;
    this.apart = !index && Object.keys(pages).length > 0; // the patterns are on other pages
    this.heads = layers.flatMap((layer, row) => heads.map((head, column) => {
      const at = row * heads.length + column;
      return { layer, head, row, column, at, name: `L${layer} H${head}`, label: labels?.[at] ?? "" };
    }));
    this.alone = this.heads.length === 1; // a page of one head: it is open, and stays so
    this.prompt = this.data.prompt - 1; // which, from 0
    this.open = this.held = null; // the head that is shown, the token that is locked
    this.drawing = new Drawing();
    this.pins = new Map(); // heads that stand side by side, and their drawings
    this.root = make("div", { className: "viewer" });
    this.beside = make("div", { className: "pins", hidden: true });
    this.root.append(this.controls(), this.wall(), this.panel(), this.beside);
    box.querySelector(".still").replaceWith(this.root);
    this.chooser.value = this.prompt;
    this.arrange();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.repaint());
  }

  get text() {
    return this.data.prompts[this.prompt];
  }

  piece({ row, column }) {
    return unpack(this.text.pieces[row][column], this.text.size, this.text.causal);
  }

  // The wall of small pictures

  controls() {
    const { prompts, scores } = this.data, names = Object.keys(scores).map((name) => [name, name]);
    const orders = [["layer", "layer"], ["name", "name"], ...names];
    const texts = prompts.map(({ tokens }, i) => [i, `${i + 1}: ${short(tokens.join(""), 48)}`]);
    const [prompt, chooser] = choice("Prompt", texts, () => this.choose(Number(chooser.value)));
    const [order, sort] = choice("Sort by", orders, () => this.arrange());
    const [measure, score] = choice("Only heads with", names, () => this.arrange());
    const least = make("input", { type: "number", step: "any", placeholder: "any" });
    least.addEventListener("input", () => this.arrange());
    Object.assign(this, { chooser, sort, score, least, count: make("output") });
    const bound = make("span", {}, measure, " ", make("label", {}, "of at least ", least));
    const parts = prompts.length > 1 ? [prompt] : [];
    if (!this.alone) parts.push(order, bound, this.count);
    return make("p", { className: "controls" }, ...parts);
  }

  wall() {
    const wall = make("div", { className: "wall", role: "group", hidden: this.alone });
    wall.ariaLabel = "Heads; arrow keys move, Enter opens one";
    wall.style.setProperty("--heads", this.data.heads.length);
    for (const head of this.heads) {
      head.canvas = make("canvas", { ariaHidden: "true", width: 1, height: 1 });
      head.value = make("span", { className: "value" });
      const words = [make("span", {}, head.name), head.value];
      if (head.label) words.splice(1, 0, make("span", { className: "label" }, head.label));
      head.tile = this.apart ? make("a") : button("", () => this.show(head, true));
      head.tile.append(head.canvas, ...words);
      head.tile.className = "tile";
      head.tile.tabIndex = -1;
    }
    const byTile = new Map(this.heads.map((head) => [head.tile, head]));
    this.seen = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        this.seen.unobserve(target);
        this.picture(byTile.get(target));
      }
    }, { rootMargin: "200px" });
    const columns = () => getComputedStyle(wall).gridTemplateColumns.split(" ").length;
    this.stop = rove(wall, ".tile", columns);
    this.tiles = wall;
    return wall;
  }

  async picture(head) {
    const { text } = this, weights = await this.piece(head);
    // Filtered out meanwhile: it is seen again, and painted, when it is back.
    if (text !== this.text || !head.canvas.isConnected) return;
    paint(head.canvas, weights, text.size, Math.min(text.size, TILE_EDGE));
  }

  repaint() {
    for (const { tile } of this.heads) {
      this.seen.unobserve(tile);
      this.seen.observe(tile);
    }
    this.redraw();
  }

  /** Puts the heads that pass the filter in order. */
  arrange() {
    const { scores } = this.data, by = this.sort.value, measured = scores[by];
    const least = this.least.value === "" ? -Infinity : this.least.valueAsNumber;
    this.order = this.heads.filter(({ at }) => scores[this.score.value][at] >= least);
    if (measured) this.order.sort((a, b) => measured[b.at] - measured[a.at] || a.at - b.at);
    if (by === "name") {
      this.order.sort((a, b) => byText(`${a.label} ${a.name}`, `${b.label} ${b.name}`));
    }
    this.order.forEach((head, i) => {
      const first = by === "layer" && this.order[i - 1]?.layer !== head.layer;
      head.tile.classList.toggle("first", first);
      head.value.textContent = measured ? measured[head.at].toFixed(2) : "";
      if (this.apart) head.tile.href = this.data.pages[head.layer] + this.address(head);
    });
    this.tiles.replaceChildren(...this.order.map(({ tile }) => tile));
    this.stop(this.order.includes(this.open) ? this.open.tile : this.order[0]?.tile);
    const [left, all] = [this.order.length, this.heads.length];
    this.count.textContent = `${left < all ? `${left} of ` : ""}${several(all, "head")}`;
    this.repaint();
  }

  choose(prompt) {
    this.chooser.value = this.prompt = prompt;
    this.held = this.weights = null;
    this.arrange();
    if (this.open) this.show(this.open);
  }

  // One head

  panel() {
    const title = make("h4", { tabIndex: -1 });
    const back = button("Previous head", () => this.step(-1));
    const next = button("Next head", () => this.step(1));
    const pin = button("Pin beside", () => this.pin(this.open));
    const link = make("a", {}, "Link to this head");
    const close = button("Close", () => this.close());
    const bar = make("div", { className: "bar" }, title);
    if (!this.alone) bar.append(back, next, pin, link, close);
    const about = make("p", { className: "source" });
    const tokens = make("div", { className: "tokens text", role: "group" });
    tokens.ariaLabel = "Tokens; left and right move, up and down change the head, Enter locks";
    const readout = make("p", { className: "readout", ariaLive: "polite" });
    const partners = make("div", { className: "partners" });
    const words = make("div", {}, tokens, readout, partners);
    const panel = make("section", { className: "head", hidden: true, ariaLabel: "One head" });
    Object.assign(this, { one: panel, title, link, about, tokens, readout, partners, pinned: pin });
    const panes = make("div", { className: "panes" }, this.drawing.node, words);
    panel.append(bar, about, this.modes(), panes);
    this.stopToken = rove(tokens, ".token");
    for (const event of ["focusin", "pointerover"]) {
      tokens.addEventListener(event, ({ target }) => {
        if (target.matches(".token")) this.point(Number(target.dataset.at));
      });
    }
    const { matrix } = this.drawing;
    matrix.addEventListener("pointermove", (event) => this.point(...this.cell(event)));
    matrix.addEventListener("click", (event) => this.lock(this.cell(event)[0]));
    panel.addEventListener("keydown", (event) => this.key(event, back, next));
    return panel;
  }

  /** How heads are drawn, and buttons that save the picture. */
  modes() {
    const kinds = [["map", "map"], ["lines", "lines"]];
    const [chosen, mode] = choice("Show as", kinds, () => this.redraw());
    const least = make("input", { type: "range", min: 0.02, max: 1, step: 0.01, value: 0.3 });
    const bound = make("label", {}, "Weights of at least ", least), count = make("output");
    least.addEventListener("input", () => this.redraw());
    Object.assign(this, { mode, level: least, bound, lines: count });
    const saves = ["SVG", "PNG"].map((kind) => button(`Save as ${kind}`, () => this.save(kind)));
    const box = make("div", { className: "bar" }, ...saves);
    return make("div", { className: "controls" }, chosen, bound, count, box);
  }

  save(kind) {
    const { layer, head } = this.open, prompt = this.prompt + 1;
    this.drawing.save(kind.toLowerCase(), `${this.data.name}-L${layer}H${head}-prompt${prompt}`);
  }

  /** Draws the open head and those beside it as they are asked for. */
  redraw() {
    const { text } = this, least = Number(this.level.value), mode = this.mode.value;
    this.bound.hidden = mode === "map";
    if (this.weights) {
      const name = [this.title.textContent, this.drawn.label].filter(Boolean).join(", ");
      this.drawing.show(name, text, this.weights, mode, least);
      const level = least.toFixed(2);
      this.lines.textContent = mode === "map" ? "" : `${level}: ${this.drawing.count}`;
      this.drawing.point(this.at ?? 0, this.held);
    }
    this.beside.hidden = !this.pins.size;
    for (const [head, drawing] of this.pins) {
      this.piece(head).then((weights) => {
        if (text !== this.text) return;
        drawing.show(head.name, text, weights, mode, least);
        drawing.point(Math.min(this.at ?? 0, text.size - 1), this.held);
      });
    }
  }

  /** Puts a head beside the others, or takes it away. */
  pin(head) {
    const drawing = this.pins.get(head);
    if (drawing) {
      drawing.node.parentElement.remove();
      this.pins.delete(head);
    } else {
      const added = new Drawing();
      const name = make("span", {}, [head.name, head.label].filter(Boolean).join(" "));
      const open = button("Open", () => this.show(head, true));
      const unpin = button("Remove", () => {
        this.pin(head);
        (this.beside.querySelector("button") ?? this.pinned).focus();
      });
      open.ariaLabel = `Open ${head.name}`;
      unpin.ariaLabel = `Remove ${head.name}`;
      const bar = make("figcaption", { className: "bar" }, name, open, unpin);
      this.beside.append(make("figure", {}, bar, added.node));
      this.pins.set(head, added);
    }
    this.pinned.ariaPressed = String(this.pins.has(this.open));
    this.redraw();
  }

  key(event, back, next) {
    const steps = { ArrowUp: -1, ArrowDown: 1 };
    const free = event.target.matches(".token, h4") || [back, next].includes(event.target);
    if (!event.target.matches(".token")) Object.assign(steps, { ArrowLeft: -1, ArrowRight: 1 });
    if (event.key === "Escape" && this.held !== null) this.lock(this.held);
    else if (event.key === "Escape") this.close();
    else if (free && steps[event.key]) this.step(steps[event.key]);
    else return;
    event.preventDefault();
  }

  step(by) {
    const { order } = this, at = order.indexOf(this.open);
    if (order.length) this.show(order[at < 0 ? 0 : (at + by + order.length) % order.length]);
  }

  /** Unpacks a head and shows it; with `enter` the focus moves there. */
  async show(head, enter = false) {
    this.open?.tile.removeAttribute("aria-current");
    this.open = head;
    head.tile.ariaCurrent = "true";
    const { text } = this, weights = await this.piece(head);
    if (this.open !== head || this.text !== text) return; // another was asked for meanwhile
    Object.assign(this, { weights, drawn: head });
    this.one.hidden = false;
    this.title.textContent = `Layer ${head.layer}, head ${head.head}`;
    const scores = Object.entries(this.data.scores);
    const told = scores.map(([name, values]) => `${name} ${values[head.at].toFixed(3)}`);
    this.about.textContent = [head.label, ...told].filter(Boolean).join(" · ");
    this.pinned.ariaPressed = String(this.pins.has(head));
    if (this.written !== text) this.write(text);
    this.point(this.held ?? Math.min(this.at ?? Infinity, text.tokens.length - 1));
    this.redraw();
    this.link.href = this.address(head);
    if (!this.alone) rename(this.link.hash);
    this.stop(this.order.includes(head) ? head.tile : this.order[0]?.tile);
    if (!enter) return;
    this.title.focus({ preventScroll: true });
    this.one.scrollIntoView({ block: "nearest" });
  }

  close() {
    if (this.alone) return;
    const { tile } = this.open;
    this.one.hidden = true;
    this.open = this.held = this.weights = null;
    tile.removeAttribute("aria-current");
    rename("");
    (tile.isConnected ? tile : this.sort).focus();
  }

  write({ tokens }) {
    this.written = this.text;
    this.marks = tokens.map((token, at) => {
      const mark = button(token, () => this.lock(at));
      Object.assign(mark, { className: "token", tabIndex: -1, ariaPressed: "false" });
      mark.dataset.at = at;
      return mark;
    });
    this.tokens.replaceChildren(...this.marks);
    this.stopToken(this.marks.at(-1));
  }

  lock(at) {
    const free = this.held === at;
    this.held = free ? null : at;
    this.marks.forEach((mark, i) => { mark.ariaPressed = String(i === this.held); });
    this.point(at);
  }

  /** The query and the key under the pointer. */
  cell({ offsetX, offsetY, target }) {
    const cells = [offsetY / target.clientHeight, offsetX / target.clientWidth];
    const { size } = this.text;
    return cells.map((share) => Math.max(0, Math.min(size - 1, Math.floor(share * size))));
  }

  weight(q, k) {
    return this.weights[q * this.text.size + k] / 255;
  }

  /** Tells what a token attends to and who attends to it; of two, what passes between them. */
  point(token, other = null) {
    if (!this.weights) return;
    const { tokens, size } = this.text, at = this.held ?? token;
    if (other === null && at !== token) other = token;
    this.at = at;
    this.marks.forEach((mark, i) => {
      mark.style.setProperty("--to", ROOTS[this.weights[at * size + i]]);
      mark.style.setProperty("--from", ROOTS[this.weights[i * size + at]]);
      mark.classList.toggle("at", i === at);
    });
    for (const drawing of [this.drawing, ...this.pins.values()]) {
      if (drawing.text === this.text) drawing.point(at, this.held);
    }
    const word = (i) => [quoted(tokens[i]), ` ${i}`];
    const value = (q, k) => this.weight(q, k).toFixed(3);
    const says = (q, k) => [...word(q), " attends to ", ...word(k), `: ${value(q, k)}`];
    const to = this.strongest((i) => this.weight(at, i));
    const from = this.strongest((i) => this.weight(i, at));
    const pair = other === null ? says(at, to[0] ?? at)
      : [...says(at, other), ...(other === at ? [] : ["; ", ...says(other, at)])];
    this.readout.replaceChildren(...(this.held === null ? [] : ["Locked. "]), ...pair, ".");
    const list = (title, found, weight) => {
      const items = found.map((i) => make("li", {}, make("span", {}, ...word(i)), weight(i)));
      if (!found.length) items.push(make("li", {}, "none"));
      return make("div", {}, make("p", { className: "source" }, title), make("ol", {}, ...items));
    };
    this.partners.replaceChildren(
      list("It attends to", to, (i) => value(at, i)),
      list("These attend to it", from, (i) => value(i, at)),
    );
  }

  strongest(weight) {
    const found = range(this.text.size).filter((i) => weight(i) > 0);
    return found.sort((a, b) => weight(b) - weight(a)).slice(0, MOST_PARTNERS);
  }

  address({ layer, head }) {
    const parts = { a: this.data.name, layer, head, prompt: this.prompt + 1 };
    return `#${new URLSearchParams(parts)}`;
  }

  /** Opens a head at a prompt, counted from 1, here or on its own page; tells whether it is here. */
  follow(layer, head, prompt) {
    const found = this.heads.find((one) => one.layer === layer && one.head === head);
    if (this.data.pages[layer] && (this.apart || !found)) {
      location.replace(this.data.pages[layer] + location.hash);
    } else if (found) {
      const there = this.data.prompts[prompt - 1] ? prompt - 1 : this.data.prompt - 1;
      if (there !== this.prompt) {
        this.open = null;
        this.choose(there);
      }
      this.show(found, true);
    }
    return Boolean(found);
  }
}

/** Gives the page an address without leaving it: whole, since a frame has the base of its owner. */
function rename(hash) {
  history.replaceState(null, "", location.href.split("#")[0] + hash);
}

const viewers = [...document.querySelectorAll(".attention")].map((box) => new Viewer(box));

/** Opens the head that the address names: "#head-L2H1-prompt3", in the first viewer that has it, or
 *  "#a=viewer&layer=2&head=1&prompt=3". */
function follow() {
  const [, ...numbers] = /^#head-L(\d+)H(\d+)(?:-prompt(\d+))?$/.exec(location.hash) ?? [];
  if (numbers.length) {
    const [layer, head, prompt] = numbers.map(Number);
    viewers.find((viewer) => viewer.follow(layer, head, prompt || viewer.data.prompt));
    return;
  }
  const address = new URLSearchParams(location.hash.slice(1));
  for (const viewer of viewers) {
    if (address.get("a") !== viewer.data.name || !address.has("head")) continue;
    viewer.follow(...["layer", "head", "prompt"].map((name) => Number(address.get(name))));
  }
}
addEventListener("hashchange", follow);
follow();
for (const viewer of viewers) if (viewer.alone && !viewer.open) viewer.show(viewer.heads[0]);
document.documentElement.dataset.ready = "";
