const LONGEST_STAGE = 1280; // pixels of the canvas; small pictures are enlarged once, here, and not again by CSS
const THUMBNAIL = 210;

const fraction = (value) => (value / page.fraction).toFixed(3);

/** An example of the page with its arrays unpacked and its picture decoded. */
async function loaded(example) {
  const unpack = async ([name, value]) => [name, value?.dtype ? await unpacked(value) : value];
  const picture = new Image();
  picture.src = example.picture;
  const [fields] = await Promise.all([Promise.all(Object.entries(example).map(unpack)), picture.decode()]);
  return { ...Object.fromEntries(fields), picture };
}

/** A row of the readout: name, a bar if `withBar`, and `values` cells. */
function row(withBar, values) {
  const bar = () => make("td", { class: "wide" }, make("span", { class: "bar" }, make("i")));
  const cells = Array.from({ length: values }, () => make("td"));
  return make("tr", {}, make("th", { scope: "row" }), ...(withBar ? [bar()] : []), ...cells);
}

function fillRow(tr, name, share, values) {
  tr.cells[0].replaceChildren(...name);
  const bar = tr.querySelector("i");
  if (bar) bar.style.width = `${(100 * share) / page.fraction}%`;
  values.forEach((value, index) => tr.cells[tr.cells.length - values.length + index].replaceChildren(value));
}

class Explorer {
  constructor() {
    this.picture = element("picture");
    this.blend = element("blend");
    this.layerName = "prediction";
    this.blend.addEventListener("input", () => this.draw());
    for (const kind of ["pointermove", "pointerdown"]) {
      this.picture.addEventListener(kind, (event) => this.point(event));
    }
    this.picture.addEventListener("keydown", (event) => this.key(event));
    for (const group of new Set(page.examples.map((example) => example.group))) {
      const pictures = make("div", { class: "row" });
      page.examples.forEach((example, index) => {
        if (example.group === group) pictures.append(this.button(example, index));
      });
      element("picker").append(make("div", { role: "group", "aria-label": group }, make("h3", {}, group), pictures));
    }
    this.show(0);
  }

  button(example, index) {
    const score = example.iou === null ? "not labelled" : `IoU ${(100 * example.iou).toFixed(1)} %`;
    const small = make("img", { src: example.picture, alt: "" });
    const button = make("button", { type: "button" }, small, make("span", {}, example.id), make("br"), score);
    button.dataset.index = index;
    button.addEventListener("click", () => this.show(index));
    return button;
  }

  async show(index) {
    this.shown = index;
    const example = await loaded(page.examples[index]);
    if (this.shown !== index) return; // another example was chosen while this one loaded
    this.example = example;
    for (const button of element("picker").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", Number(button.dataset.index) === index);
    }
    const { width, height } = example.picture;
    const zoom = Math.max(1, LONGEST_STAGE / Math.max(width, height));
    this.picture.width = Math.round(width * zoom);
    this.picture.height = Math.round(height * zoom);
    element("stage").style.maxWidth = `calc(75vh * ${width / height})`; // keeps a tall picture within the window
    this.layers = layersOf(example);
    if (!this.layer) this.layerName = "prediction";
    this.offerLayers();
    this.tabulate();
    this.draw();
    this.goTo(Math.floor(example.size[1] / 2), Math.floor(example.size[0] / 2));
  }

  get layer() {
    return this.layers.find((layer) => layer.name === this.layerName);
  }

  offerLayers() {
    for (const label of element("layers").querySelectorAll("label")) label.remove();
    const [height, width] = this.example.size;
    for (const layer of this.layers) {
      const small = make("canvas", { width: THUMBNAIL, height: Math.round((THUMBNAIL * height) / width) });
      drawLayer(small.getContext("2d"), this.example, layer);
      const radio = make("input", { type: "radio", name: "layer", value: layer.name });
      radio.checked = layer.name === this.layerName;
      radio.addEventListener("change", () => {
        this.layerName = layer.name;
        this.draw();
      });
      element("layers").append(make("label", {}, radio, small, layer.name));
    }
  }

  /** Draws the picture and, with the slider's opacity, the chosen layer over it. */
  draw() {
    const context = this.picture.getContext("2d");
    context.imageSmoothingEnabled = true;
    context.globalAlpha = 1;
    context.drawImage(this.example.picture, 0, 0, this.picture.width, this.picture.height);
    context.globalAlpha = this.blend.value / 100;
    drawLayer(context, this.example, this.layer);
    const blended = `${this.blend.value} % ${this.layerName}`;
    element("blended").value = blended;
    this.blend.setAttribute("aria-valuetext", blended);
    this.picture.setAttribute("aria-label", `${this.example.id} under ${blended}`);
    element("key").replaceChildren(...this.layer.key);
  }

  /** Creates the rows of the readout; `goTo` fills them. */
  tabulate() {
    const { top_classes, weights, winner, recalibration, step } = this.example;
    const scores = element("scores"), scales = element("scales");
    const kept = Array.from({ length: top_classes.shape[0] }, () => row(true, recalibration ? 2 : 1));
    scores.tBodies[0].replaceChildren(...kept);
    scores.caption.textContent = `Class scores (softmax)${recalibration ? " and their recalibration" : ""}`;
    scales.hidden = page.scales.length === 1;
    const values = 2 + Boolean(weights) + Boolean(winner);
    scales.tBodies[0].replaceChildren(...page.scales.map(() => row(Boolean(weights), values)));
    const titles = ["", ...(weights ? ["weight", ""] : []), "alone", "score", ...(winner ? [""] : [])];
    scales.tHead.replaceChildren(make("tr", {}, ...titles.map((title) => make("th", { scope: "col" }, title))));
    scales.caption.textContent = `${weights ? "Attention weights and prediction" : "Prediction"} of each scale alone`;
    const sampled = weights ? "Scores and weights" : "Scores";
    element("sampling").textContent =
      `${sampled} are stored for every ${step}th pixel and shown for the square; labels are exact for the pixel.`;
  }

  point(event) {
    if (!this.example) return;
    const box = this.picture.getBoundingClientRect();
    const [height, width] = this.example.size;
    const x = Math.floor(((event.clientX - box.left) / box.width) * width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * height);
    this.goTo(x, y);
  }

  key(event) {
    const way = ARROWS[event.key];
    if (!way || !this.example) return;
    event.preventDefault();
    const far = this.example.step * (event.shiftKey ? 5 : 1);
    this.goTo(this.x + way[0] * far, this.y + way[1] * far);
    const scales = [...element("scales").tBodies[0].rows].map((tr) => tr.innerText);
    element("spoken").textContent = [element("where").innerText, ...scales].join(". ");
  }

  /** Shows the values of pixel (x, y) of the image and of the nearest point of the grid. */
  goTo(x, y) {
    const { size, step, labels, truth, top_classes } = this.example;
    this.x = within(x, size[1]);
    this.y = within(y, size[0]);
    const [rows, columns] = top_classes.shape.slice(1);
    const column = within(Math.round(this.x / step), columns);
    const row = within(Math.round(this.y / step), rows);
    this.frame(column * step, row * step);
    const ofPixel = ({ shape, values }) => {
      const line = Math.floor((this.y * shape[0]) / size[0]);
      return values[line * shape[1] + Math.floor((this.x * shape[1]) / size[1])];
    };
    element("where").replaceChildren(
      `Pixel ${this.x}, ${this.y}. Predicted: `,
      make("strong", { id: "predicted" }, className(ofPixel(labels))),
      "; ground truth: ",
      make("strong", { id: "truth" }, className(ofPixel(truth))),
    );
    this.readOut((stack, index = 0) => stack.values[(index * rows + row) * columns + column]);
  }

  /** Puts the square around a pixel of the grid. */
  frame(x, y) {
    const [height, width] = this.example.size;
    const { step } = this.example;
    const square = element("cell");
    square.hidden = false;
    Object.assign(square.style, {
      left: `${(100 * (x + 0.5)) / width}%`,
      top: `${(100 * (y + 0.5)) / height}%`,
      width: `${(100 * step) / width}%`,
      height: `${(100 * step) / height}%`,
    });
  }

  /** Fills the tables; at(stack, index) returns the value of map `index` at the point. */
  readOut(at) {
    const { top_classes, top_scores, scale_classes, scale_scores, weights, winner, recalibration } = this.example;
    [...element("scores").tBodies[0].rows].forEach((tr, index) => {
      const label = at(top_classes, index), score = at(top_scores, index);
      const values = [fraction(score), ...(recalibration ? [at(recalibration, index).toFixed(3)] : [])];
      fillRow(tr, [swatch(rgb(label)), className(label)], score, values);
    });
    [...element("scales").tBodies[0].rows].forEach((tr, index) => {
      const weight = weights ? at(weights, index) : 0;
      const alone = make("span", { class: "name" }, className(at(scale_classes, index)));
      const values = [...(weights ? [fraction(weight)] : []), alone, fraction(at(scale_scores, index))];
      if (winner) values.push(at(winner) === index ? "wins" : "");
      fillRow(tr, [scaleName(index)], weight, values);
    });
  }
}

if (page.examples.length) new Explorer();
else element("explorer").hidden = true;
