const rgb = (label) => page.colours[label];
const scaleName = (index) => `scale ${page.scales[index]}`;
const ramp = (level) => page.ramp.slice(3 * level, 3 * level + 3); // level: 0 to 255

/** Map `index` of a stack (n, h, w), or the map itself if it is (h, w). */
function mapOf({ shape, values }, index = 0) {
  const [height, width] = shape.slice(-2);
  return { width, height, values: values.subarray(index * height * width, (index + 1) * height * width) };
}

/** The map with its last row and column repeated, because the image can extend up to a step beyond the last points. */
function extended({ width, height, values }) {
  const [wide, high] = [width + 1, height + 1];
  const repeated = values.constructor.from({ length: wide * high }, (_, index) => {
    const row = within(Math.floor(index / wide), height);
    return values[row * width + within(index % wide, width)];
  });
  return { width: wide, height: high, values: repeated };
}

/** A canvas of a map's size; paint(value, index) returns [r, g, b]. */
function painted({ width, height, values }, paint) {
  const canvas = make("canvas", { width, height });
  const image = new ImageData(width, height);
  const { data } = image;
  data.fill(255);
  values.forEach((value, index) => {
    [data[4 * index], data[4 * index + 1], data[4 * index + 2]] = paint(value, index);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function swatch(colour) {
  const made = make("span", { class: "swatch" });
  made.style.background = `rgb(${colour})`;
  return made;
}

/**
 * The layers that can be drawn over the picture: {name, canvas, key, onGrid, smooth}. A canvas has the picture's pixels
 * or, with onGrid, the points of the grid; smooth interpolates between the points. The key explains the colours.
 */
function layersOf(example) {
  const { labels, truth, weights, winner, scale_classes, recalibration } = example;
  const indices = [...page.scales.keys()];
  const grid = (stack, index = 0) => extended(mapOf(stack, index));
  const several = indices.length > 1;
  return [
    { name: "prediction", ...labelLayer(mapOf(labels)) },
    { name: "ground truth", ...labelLayer(mapOf(truth)) },
    { name: "errors", ...errorLayer(mapOf(labels), mapOf(truth)) },
    ...(weights ? indices : []).map((index) => {
      const range = [0, page.fraction];
      return { name: `weight of ${scaleName(index)}`, ...valueLayer(grid(weights, index), range, ["0", "1"]) };
    }),
    ...(winner ? [{ name: "winning scale", ...winnerLayer(grid(winner)) }] : []),
    ...(several ? indices : []).map((index) => {
      return { name: `${scaleName(index)} alone`, ...labelLayer(grid(scale_classes, index)), onGrid: true };
    }),
    ...(recalibration ? [recalibrationLayer(grid(recalibration))] : []),
  ];
}

/** An entry of a colour key. */
function named(colour, name) {
  return make("span", {}, swatch(colour), name);
}

function labelLayer(map) {
  const present = [...new Set(map.values)].sort((a, b) => a - b);
  return { canvas: painted(map, rgb), key: present.map((label) => named(rgb(label), className(label))) };
}

function errorLayer(labels, truth) {
  const [right, wrong, unknown] = [[235, 238, 242], [209, 67, 47], [128, 128, 128]];
  const paint = (label, index) => {
    if (truth.values[index] === page.ignore) return unknown;
    return label === truth.values[index] ? right : wrong;
  };
  const key = [named(right, "right"), named(wrong, "wrong"), named(unknown, "not labelled")];
  return { canvas: painted(labels, paint), key };
}

function valueLayer(map, [low, high], names) {
  const paint = (value) => ramp(Math.round((255 * (value - low)) / (high - low || 1)));
  const levels = { width: 256, height: 1, values: Uint8Array.from({ length: 256 }, (_, level) => level) };
  return { canvas: painted(map, paint), key: [names[0], painted(levels, ramp), names[1]], onGrid: true, smooth: true };
}

function winnerLayer(map) {
  const paint = (index) => ramp(Math.round((255 * index) / (page.scales.length - 1)));
  const key = page.scales.map((_, index) => named(paint(index), scaleName(index)));
  return { canvas: painted(map, paint), key, onGrid: true };
}

function recalibrationLayer(map) {
  const wider = ([low, high], value) => [Math.min(low, value), Math.max(high, value)];
  const range = map.values.reduce(wider, [Infinity, -Infinity]);
  const names = range.map((value) => value.toFixed(3));
  return { name: "recalibration of the highest class", ...valueLayer(map, range, names) };
}

/** Draws a layer over the whole canvas; a point of the grid lies in the centre of its coloured square. */
function drawLayer(context, example, { canvas, onGrid, smooth }) {
  const { width, height } = context.canvas;
  context.imageSmoothingEnabled = Boolean(smooth);
  if (!onGrid) return context.drawImage(canvas, 0, 0, width, height);
  const across = (example.step * width) / example.size[1];
  const down = (example.step * height) / example.size[0];
  context.drawImage(canvas, -across / 2, -down / 2, canvas.width * across, canvas.height * down);
}
