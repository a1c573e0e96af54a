const WIDEST_MATRIX = 480; // pixels; with many classes the matrix is wider and scrolls
const SMALLEST_CELL = 17;
const LARGEST_CELL = 32;
const LEAST_RATE = 0.0005; // cells below it stay empty

class ConfusionMatrix {
  constructor() {
    const { labels, counts } = page.confusion;
    this.names = labels.map(className);
    this.totals = counts.map((row) => row.reduce((sum, count) => sum + count, 0));
    this.cell = Math.min(Math.max(Math.floor(WIDEST_MATRIX / labels.length), SMALLEST_CELL), LARGEST_CELL);
    this.margin = Math.min(8 + 6.5 * Math.max(...this.names.map((name) => name.length)), 130);
    const side = this.cell * labels.length;
    const whole = this.margin + side + 2;
    this.svg = shape(
      "svg",
      { id: "matrix", width: whole, height: whole, tabindex: 0, role: "img", "aria-label": "Confusion matrix" },
      ...this.names.flatMap((name, index) => this.axisLabels(name, index)),
      ...counts.flatMap((row, index) => row.map((_, column) => this.square(index, column))),
      shape("rect", { class: "frame", x: this.margin, y: this.margin, width: side, height: side }),
    );
    this.chosen = this.svg.appendChild(shape("rect", { class: "chosen", width: this.cell, height: this.cell }));
    this.chosen.setAttribute("visibility", "hidden");
    this.row = this.column = 0;
    for (const kind of ["pointermove", "pointerdown"]) this.svg.addEventListener(kind, (event) => this.point(event));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    element("matrix-scroller").append(this.svg);
  }

  /** Start of row or column `index` in pixels. */
  start(index) {
    return this.margin + this.cell * index;
  }

  rate(row, column) {
    return page.confusion.counts[row][column] / Math.max(this.totals[row], 1);
  }

  axisLabels(name, index) {
    const baseline = this.start(index + 0.5) + 4, end = this.margin - 5;
    return [
      shape("text", { x: end, y: baseline, "text-anchor": "end" }, name),
      shape("text", { transform: `translate(${baseline} ${end}) rotate(-90)` }, name),
    ];
  }

  square(row, column) {
    const rate = this.rate(row, column);
    if (rate < LEAST_RATE) return "";
    const place = { x: this.start(column), y: this.start(row), width: this.cell, height: this.cell };
    const kind = row === column ? "right" : "wrong";
    return shape("rect", { class: kind, "fill-opacity": Math.sqrt(rate).toFixed(3), ...place });
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - this.margin) / this.cell);
    const row = Math.floor((event.clientY - box.top - this.margin) / this.cell);
    if (this.names[row] !== undefined && this.names[column] !== undefined) this.choose(row, column);
  }

  key(event) {
    const way = ARROWS[event.key];
    if (!way) return;
    event.preventDefault();
    this.choose(within(this.row + way[1], this.names.length), within(this.column + way[0], this.names.length));
  }

  choose(row, column) {
    [this.row, this.column] = [row, column];
    this.chosen.setAttribute("x", this.start(column));
    this.chosen.setAttribute("y", this.start(row));
    this.chosen.setAttribute("visibility", "visible");
    const share = `${(100 * this.rate(row, column)).toFixed(2)} % of its pixels`;
    const verdict = row === column ? "is correct" : `is classified as ${this.names[column]}`;
    const pixels = page.confusion.counts[row][column].toLocaleString("en");
    element("matrix-readout").textContent = `${this.names[row]} ${verdict} on ${share}: ${pixels}.`;
  }
}

new ConfusionMatrix();
