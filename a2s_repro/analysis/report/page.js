"use strict";

const page = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const className = (label) => (label === page.ignore ? "not labelled" : page.classes[label]);

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const within = (value, count) => Math.min(Math.max(value, 0), count - 1);

/** A new HTML element with attributes and children; children may be text. */
function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** A new SVG element with attributes and children. */
function shape(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const ARRAYS = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array };

/** {shape, dtype, data} -> {shape, values}: the inverse of `packed` in examples.py. */
async function unpacked({ shape, dtype, data }) {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return { shape, values: new ARRAYS[dtype](await new Response(stream).arrayBuffer()) };
}
