"use strict";
// Numbers to pixels: unpack the page's data, cut planes, interpolate, colour. No page element is touched here.
const AXES = { axial: [0, 1, 2], coronal: [1, 0, 2], sagittal: [2, 0, 1] }; // cut, rows, columns of a (z, y, x) array
const KINDS = { int16: Int16Array, uint8: Uint8Array, float32: Float32Array };

async function unpack(text) {
  const packed = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const body = await new Response(stream).arrayBuffer();
  const length = new DataView(body).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(body, 4, length)));
  const start = Math.ceil((4 + length) / 8) * 8;
  const arrays = {};
  for (const [name, { dtype, shape, offset }] of Object.entries(header.arrays)) {
    const count = shape.reduce((a, b) => a * b, 1);
    arrays[name] = { shape, data: new KINDS[dtype](body, start + offset, count) };
  }
  return { header, arrays };
}

// Undo the differences along x; HU as floats.
function restore({ shape, data }, step) {
  const values = new Float32Array(data.length);
  const width = shape[2];
  for (let at = 0; at < data.length; at += width) {
    let level = 0;
    for (let x = 0; x < width; x++) values[at + x] = step * (level += data[at + x]);
  }
  return { shape, values };
}

// One plane in display order: {height, width, values}.
function cutPlane({ shape, values }, view, index, [flipRows, flipColumns]) {
  const [cut, rowAxis, columnAxis] = AXES[view];
  const stride = [shape[1] * shape[2], shape[2], 1];
  const [height, width] = [shape[rowAxis], shape[columnAxis]];
  const out = new Float32Array(height * width);
  for (let row = 0; row < height; row++) {
    const from = index * stride[cut] + (flipRows ? height - 1 - row : row) * stride[rowAxis];
    for (let column = 0; column < width; column++) {
      out[row * width + column] = values[from + (flipColumns ? width - 1 - column : column) * stride[columnAxis]];
    }
  }
  return { height, width, values: out };
}

// Weights of neighbours for every output pixel: edges (not centres) of the two grids coincide; the border repeats.
function weights(from, to, kernel, reach) {
  return Array.from({ length: to }, (_, place) => {
    const centre = ((place + 0.5) * from) / to - 0.5;
    const first = Math.floor(centre) - reach + 1;
    return Array.from({ length: 2 * reach }, (_unused, tap) => [
      Math.min(Math.max(first + tap, 0), from - 1),
      kernel(centre - first - tap),
    ]);
  });
}
const linear = (x) => Math.max(0, 1 - Math.abs(x));
const nearest = (x) => (x > -0.5 && x <= 0.5 ? 1 : 0);
function cubic(x) {
  const a = Math.abs(x);
  return a < 1 ? 1 + a * a * (1.5 * a - 2.5) : a < 2 ? 2 + a * (-4 + a * (2.5 - 0.5 * a)) : 0;
}

function resize(plane, height, width, kernel, reach) {
  const across = weights(plane.width, width, kernel, reach);
  const down = weights(plane.height, height, kernel, reach);
  const middle = new Float32Array(plane.height * width);
  for (let row = 0; row < plane.height; row++) {
    for (let column = 0; column < width; column++) {
      let sum = 0;
      for (const [from, weight] of across[column]) sum += weight * plane.values[row * plane.width + from];
      middle[row * width + column] = sum;
    }
  }
  const values = new Float32Array(height * width);
  for (let row = 0; row < height; row++) {
    for (const [from, weight] of down[row]) {
      if (!weight) continue;
      for (let column = 0; column < width; column++) values[row * width + column] += weight * middle[from * width + column];
    }
  }
  return { height, width, values };
}

function paint(canvas, plane, colour) {
  canvas.width = plane.width;
  canvas.height = plane.height;
  const image = new ImageData(plane.width, plane.height);
  for (let at = 0; at < plane.values.length; at++) colour(plane.values[at], image.data, 4 * at);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function greys([low, high]) {
  return (value, data, at) => {
    const grey = Math.min(Math.max(Math.round((255 * (value - low)) / (high - low)), 0), 255);
    data[at] = data[at + 1] = data[at + 2] = grey;
    data[at + 3] = 255;
  };
}

// Where `stable` is 0 the colour becomes grey, as see-through as it was.
function signed(palette, limit, stable, grey) {
  const middle = (palette.length - 1) / 2;
  return (value, data, at) => {
    const level = limit > 0 ? Math.round((value / limit) * middle) : 0;
    data.set(palette[middle + Math.min(Math.max(level, -middle), middle)], at);
    if (stable && stable[at / 4] < 0.5) data.fill(grey, at, at + 3);
  };
}

// Size in pixels of a picture of height × width mm, square pixels, its longer side `pixels`.
function pictureSize([height, width], pixels) {
  const scale = pixels / Math.max(height, width);
  return [Math.max(1, Math.round(height * scale)), Math.max(1, Math.round(width * scale))];
}

function formatScore(value) {
  if (value === 0) return "0";
  const digits = Math.min(Math.max(0, 1 - Math.floor(Math.log10(Math.abs(value)))), 8);
  return (value > 0 ? "+" : "−") + Math.abs(value).toFixed(digits);
}
