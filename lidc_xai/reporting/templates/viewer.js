"use strict";
// The viewer: one state, one draw(). Controls change the state; everything on the page follows from it.
(async () => {
  const root = document.getElementById("viewer");
  const packed = document.getElementById("payload");
  if (!root || !packed || typeof DecompressionStream === "undefined") return; // the still pictures remain
  const { header, arrays } = await unpack(packed.textContent);
  const VIEWS = Object.keys(AXES);
  const volumes = {};
  for (const name of Object.keys(header.volumes)) volumes[name] = restore(arrays[name], header.volumes[name].step);
  const methods = Object.keys(header.methods);
  const tool = (name) => root.querySelector(`[data-tool="${name}"]`);
  const figures = Object.fromEntries(VIEWS.map((view) => [view, root.querySelector(`figure[data-view="${view}"]`)]));
  const live = root.querySelector("[aria-live]");
  const nReaders = root.querySelectorAll('[data-tool="reader"]').length;

  const count = (volume, view) => volumes[volume].shape[AXES[view][0]];
  const explained = (view) => {
    const method = header.methods[state.method];
    const place = method ? method.views.indexOf(view) : -1;
    return place < 0 ? null : { place, index: method.indices[place], kind: "" };
  };
  // The crop's slice at the one that is shown, which may be of the context; it need not be inside the crop.
  const cropSlice = (view) => {
    if (state.volume === "crop") return state.slices[view];
    const [inner, outer] = [header.volumes.crop.affine, header.volumes[state.volume].affine];
    const column = 2 - AXES[view][0];
    const along = inner.slice(0, 3).map((row) => Math.abs(row[column]));
    const mm = along.indexOf(Math.max(...along));
    return Math.round((outer[mm][3] + outer[mm][column] * state.slices[view] - inner[mm][3]) / inner[mm][column]);
  };
  // The plane whose map is shown over a slice: its own where every slice was evaluated, else the explained one.
  const mapped = (view) => {
    const index = cropSlice(view);
    const place = header.methods[state.method]?.every?.findIndex(([name, at]) => name === view && at === index) ?? -1;
    return place < 0 ? explained(view) : { place, index, kind: "every-" };
  };
  const state = {
    volume: "crop", window: "lung", method: methods[0] ?? null, output: "none", scale: "shared", smooth: true,
    opacity: 1, consensus: true, readers: Array(nReaders).fill(true), slices: {}, drag: "slices", zoom: 1, ruler: null,
  };
  const home = () => {
    for (const view of VIEWS) {
      const middle = Math.floor(count(state.volume, view) / 2);
      state.slices[view] = state.volume === "crop" ? (header.home[view] ?? explained(view)?.index ?? middle) : middle;
    }
  };
  home();

  // Scores of one output of the chosen method over a view (or which of them are stable), in display order.
  function scores(output, view, here, of = "map") {
    const method = header.methods[state.method];
    const column = method ? method.outputs.indexOf(output) : -1;
    if (column < 0 || !here) return null;
    const held = arrays[`${here.kind}${of}:${state.method}`];
    if (!held) return null;
    const { shape, data } = held;
    const [, outputs, height, width] = shape;
    const from = (here.place * outputs + column) * height * width;
    const { flip } = header.volumes.crop.views[view];
    const grid = { shape: [1, height, width], values: data.subarray(from, from + height * width) };
    return cutPlane(grid, "axial", 0, flip);
  }
  const limit = (output) => {
    const method = header.methods[state.method];
    return method[state.scale === "shared" ? "limits" : "own"][method.outputs.indexOf(output)];
  };
  // Where the crop lies in the volume that is shown: shares of its picture's left, top, width, height.
  function cropBox(view) {
    if (state.volume === "crop") return [0, 0, 1, 1];
    const [inner, outer] = [header.volumes.crop, header.volumes[state.volume]];
    const [, rowAxis, columnAxis] = AXES[view];
    const side = (axis, flipped) => {
      const column = 2 - axis; // of the affine: i, j, k
      const along = inner.affine.slice(0, 3).map((row) => Math.abs(row[column]));
      const mm = along.indexOf(Math.max(...along));
      const at = (edge) => (inner.affine[mm][3] + inner.affine[mm][column] * edge - outer.affine[mm][3]) / outer.affine[mm][column] + 0.5;
      const ends = [at(-0.5), at(volumes.crop.shape[axis] - 0.5)].map((place) => place / volumes[state.volume].shape[axis]).sort((a, b) => a - b);
      return flipped ? [1 - ends[1], ends[1] - ends[0]] : [ends[0], ends[1] - ends[0]];
    };
    const { flip } = outer.views[view];
    const [[top, height], [left, width]] = [side(rowAxis, flip[0]), side(columnAxis, flip[1])];
    return [left, top, width, height];
  }
  function paintMap(canvas, output, view, pixels, here) {
    const grid = scores(output, view, here);
    if (!grid) return false;
    const [height, width] = pictureSize(header.volumes.crop.views[view].size_mm, pixels);
    const picture = state.smooth ? resize(grid, height, width, linear, 1) : resize(grid, height, width, nearest, 1);
    const kept = scores(output, view, here, "stable");
    const stable = kept && resize(kept, height, width, nearest, 1).values;
    paint(canvas, picture, signed(header.palette, limit(output), stable, header.grey));
    return true;
  }

  // Zoom about the point where the planes cross: the frame stays, what is in it grows.
  const crossing = (view) => {
    const { flip } = header.volumes[state.volume].views[view];
    return [AXES[view][2], AXES[view][1]].map((axis, place) => {
      const share = (state.slices[VIEWS[axis]] + 0.5) / count(state.volume, VIEWS[axis]);
      return flip[1 - place] ? 1 - share : share;
    });
  };
  function zoom(view, frame) {
    const [x, y] = crossing(view);
    for (const part of frame.querySelectorAll("canvas, svg.outlines, svg.ruler")) {
      const own = part.classList.contains("map") ? cropBox(view) : [0, 0, 1, 1];
      part.style.transformOrigin = `${(100 * (x - own[0])) / own[2]}% ${(100 * (y - own[1])) / own[3]}%`;
      part.style.transform = state.zoom === 1 ? "" : `scale(${state.zoom})`;
    }
    frame.querySelector("svg.marks .bar").style.visibility = state.zoom === 1 ? "" : "hidden";
  }

  function position(view, index, volume = state.volume) {
    const { affine } = header.volumes[volume];
    const { shape } = volumes[volume];
    const ijk = [(shape[2] - 1) / 2, (shape[1] - 1) / 2, (shape[0] - 1) / 2];
    ijk[2 - AXES[view][0]] = index;
    const normal = affine.slice(0, 3).map((row) => Math.abs(row[2 - AXES[view][0]]));
    const axis = normal.indexOf(Math.max(...normal));
    const value = affine[axis][3] + ijk.reduce((sum, part, place) => sum + affine[axis][place] * part, 0);
    return `${"xyz"[axis]} = ${value.toFixed(1)}\u00a0mm`.replace("-", "−");
  }

  function drawOutlines(svg, entry, size) {
    const line = Math.max(...size) / 230;
    svg.setAttribute("viewBox", `0 0 ${size[1]} ${size[0]}`);
    for (const path of svg.querySelectorAll("path[data-reader]")) {
      const reader = Number(path.dataset.reader);
      path.setAttribute("d", (state.readers[reader] && entry?.readers[reader]) || "");
    }
    for (const path of svg.querySelectorAll("path.consensus")) {
      path.setAttribute("d", (state.consensus && entry?.consensus) || "");
      path.setAttribute("stroke-width", line * Number(path.dataset.lines));
    }
  }

  function drawMarks(svg, view, size) {
    const bar = svg.querySelector(".bar");
    const start = 96.5 - 1000 / size[1];
    for (const path of bar.querySelectorAll("path")) path.setAttribute("d", path.getAttribute("d").replace(/^M[\d.-]+/, `M${start}`));
    for (const text of bar.querySelectorAll("text")) text.setAttribute("x", start + 500 / size[1]);
    const ticks = svg.querySelector(".ticks");
    const shown = header.volumes[state.volume].views[view];
    const [, rowAxis, columnAxis] = AXES[view];
    const place = (axis, flipped) => {
      const other = VIEWS[axis];
      const share = (state.slices[other] + 0.5) / count(state.volume, other);
      return 100 * (flipped ? 1 - share : share);
    };
    const y = (place(rowAxis, shown.flip[0]) * size[0]) / size[1];
    const x = place(columnAxis, shown.flip[1]);
    const bottom = (100 * size[0]) / size[1];
    ticks.setAttribute("d", `M0 ${y}h1.5M98.5 ${y}h1.5M${x} 0v1.5M${x} ${bottom - 1.5}v1.5`);
  }

  function drawView(view) {
    const figure = figures[view];
    const shown = header.volumes[state.volume].views[view];
    const index = state.slices[view];
    const [height, width] = pictureSize(shown.size_mm, 320);
    const plane = cutPlane(volumes[state.volume], view, index, shown.flip);
    paint(figure.querySelector("canvas.ct"), resize(plane, height, width, cubic, 2), greys(header.windows[state.window]));
    const map = figure.querySelector("canvas.map");
    const here = mapped(view);
    map.hidden = !(state.output !== "none" && here && paintMap(map, state.output, view, 320, here));
    const [left, top, wide, high] = cropBox(view).map((share) => `${100 * share}%`);
    Object.assign(map.style, { left, top, width: wide, height: high });
    drawOutlines(figure.querySelector("svg.outlines"), shown.slices[index], shown.size_mm);
    drawMarks(figure.querySelector("svg.marks"), view, shown.size_mm);
    const slider = figure.querySelector("input[type=range]");
    slider.max = count(state.volume, view) - 1;
    slider.value = index;
    slider.setAttribute("aria-valuetext", position(view, index));
    figure.querySelector("[data-position]").textContent = position(view, index);
    const away = state.output !== "none" && here && here.index !== cropSlice(view);
    figure.querySelector("[data-note]").textContent = away ? `map of ${position(view, here.index, "crop")}` : "";
    zoom(view, figure.querySelector(".frame"));
  }

  function drawScale() {
    const scale = root.querySelector(".viewer-scale");
    scale.hidden = state.output === "none" || !state.method;
    if (scale.hidden) return;
    const size = limit(state.output);
    const [negative, positive] = header.towards[state.output];
    scale.querySelector(".neg").textContent = negative;
    scale.querySelector(".pos").textContent = positive;
    fillTicks(scale, size, header.units[state.output]);
  }
  function fillTicks(scale, size, unit) {
    const ticks = scale.querySelectorAll(".ticks span");
    ticks[0].textContent = formatScore(-size);
    ticks[2].textContent = `${formatScore(size)} ${unit}`;
  }

  const scratch = document.createElement("canvas");
  function drawCards() {
    const title = document.querySelector("#maps [data-method-title]");
    if (!title) return;
    title.textContent = header.methods[state.method].title;
    for (const card of document.querySelectorAll("#maps .card[data-output]")) {
      const output = card.dataset.output;
      for (const image of card.querySelectorAll("img.map")) {
        const drawn = paintMap(scratch, output, image.dataset.view, 112, explained(image.dataset.view));
        image.style.visibility = drawn ? "" : "hidden";
        if (drawn) image.src = scratch.toDataURL();
      }
      if (header.methods[state.method].outputs.includes(output)) {
        fillTicks(card.querySelector(".scale"), limit(output), header.units[output]);
      }
    }
  }

  function drawTools() {
    for (const name of ["output", "method", "volume", "scale"]) if (tool(name)) tool(name).value = state[name];
    for (const button of root.querySelectorAll('[data-tool="window"]')) {
      button.setAttribute("aria-pressed", String(button.value === state.window));
    }
    root.querySelectorAll('[data-tool="reader"]').forEach((box, reader) => (box.checked = state.readers[reader]));
    if (tool("consensus")) tool("consensus").checked = state.consensus;
    if (tool("smooth")) tool("smooth").checked = !state.smooth;
    if (tool("opacity")) tool("opacity").value = state.opacity;
    for (const button of root.querySelectorAll('[data-tool="drag"]')) {
      button.setAttribute("aria-pressed", String(button.value === state.drag));
    }
    document.documentElement.style.setProperty("--map-opacity", state.opacity);
    root.querySelector("[data-window-words]").textContent =
      `Window: ${state.window}, ${header.windows[state.window].map(Math.round).join(" to ").replaceAll("-", "−")}\u00a0HU`;
  }
  function draw({ cards = false } = {}) {
    drawTools();
    VIEWS.forEach(drawView);
    drawScale();
    if (cards && state.method) drawCards();
  }
  const say = (text) => (live.textContent = text);
  function change(values, words) {
    const before = state.method + state.scale + state.smooth;
    const volume = state.volume;
    Object.assign(state, values);
    if (state.volume !== volume) home();
    draw({ cards: before !== state.method + state.scale + state.smooth });
    if (words) say(words);
  }
  function step(view, by) {
    const index = Math.min(Math.max(state.slices[view] + by, 0), count(state.volume, view) - 1);
    change({ slices: { ...state.slices, [view]: index } }, `${view} ${position(view, index)}`);
  }
  const cycle = (list, now, by = 1) => list[(list.indexOf(now) + by + list.length) % list.length];

  // Controls
  const selected = (element) => element.selectedOptions[0].textContent;
  for (const name of ["output", "method", "volume", "scale"]) {
    tool(name)?.addEventListener("change", (event) => change({ [name]: event.target.value }, selected(event.target)));
  }
  for (const button of root.querySelectorAll('[data-tool="window"]')) {
    button.addEventListener("click", () => change({ window: button.value }, `${button.value} window`));
  }
  root.querySelectorAll('[data-tool="reader"]').forEach((box, reader) => {
    box.addEventListener("change", () => {
      change({ readers: state.readers.map((on, place) => (place === reader ? box.checked : on)) });
    });
  });
  tool("consensus")?.addEventListener("change", (event) => change({ consensus: event.target.checked }));
  tool("smooth")?.addEventListener("change", (event) => change({ smooth: !event.target.checked }));
  tool("opacity")?.addEventListener("input", (event) => change({ opacity: Number(event.target.value) }));
  tool("home")?.addEventListener("click", () => { home(); change({ zoom: 1 }, "back to the first slices"); });
  for (const button of root.querySelectorAll('[data-tool="drag"]')) {
    button.addEventListener("click", () => change({ drag: button.value }, `dragging: ${button.textContent}`));
  }
  const nearer = (by) => change({ zoom: Math.min(Math.max(state.zoom * by, 1), 8) }, "zoom");
  tool("nearer")?.addEventListener("click", () => nearer(2));
  tool("farther")?.addEventListener("click", () => nearer(0.5));
  const fill = () => (document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen?.());
  tool("full")?.addEventListener("click", fill);
  const go = (where) => { const link = document.querySelector(`[data-go="${where}"]`); if (link) location.href = link.href; };
  for (const card of document.querySelectorAll("#maps .card[data-output]")) {
    card.querySelector("[data-show]")?.addEventListener("click", () => {
      state.volume = "crop";
      home();
      change({ output: card.dataset.output }, `${card.dataset.output} map`);
      root.scrollIntoView({ block: "start" });
    });
  }

  // Planes: wheel, arrow keys, dragging across; a click brings the other two planes to that point.
  function shareAt(view, event) {
    const frame = figures[view].querySelector(".frame").getBoundingClientRect();
    const seen = [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
    return crossing(view).map((middle, place) => middle + (seen[place] - middle) / state.zoom);
  }
  function voxelAt(view, event) {
    const [across, down] = shareAt(view, event);
    const [, rowAxis, columnAxis] = AXES[view];
    const { flip } = header.volumes[state.volume].views[view];
    const { shape } = volumes[state.volume];
    const along = (share, axis, flipped) => {
      const place = Math.min(Math.max(Math.floor(share * shape[axis]), 0), shape[axis] - 1);
      return flipped ? shape[axis] - 1 - place : place;
    };
    const voxel = [0, 0, 0];
    voxel[AXES[view][0]] = state.slices[view];
    voxel[rowAxis] = along(down, rowAxis, flip[0]);
    voxel[columnAxis] = along(across, columnAxis, flip[1]);
    return voxel;
  }
  for (const view of VIEWS) {
    const figure = figures[view];
    const frame = figure.querySelector(".frame");
    const [ct, map] = ["ct", "map"].map((kind) => Object.assign(document.createElement("canvas"), { className: kind }));
    frame.prepend(ct, map);
    const ruler = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    ruler.setAttribute("class", "ruler");
    frame.append(ruler);
    // A line between two points of the picture and its length, in mm of the plane.
    function measure(from, to) {
      const [height, width] = header.volumes[state.volume].views[view].size_mm;
      const [[x0, y0], [x1, y1]] = [from, to].map(([across, down]) => [across * width, down * height]);
      const length = Math.hypot(x1 - x0, y1 - y0).toFixed(1);
      ruler.setAttribute("viewBox", `0 0 ${width} ${height}`);
      const line = Math.max(width, height) / 160;
      ruler.innerHTML = `<path d="M${x0} ${y0}L${x1} ${y1}" stroke="#000" stroke-width="${2 * line}"/><path d="M${x0} ${y0}L${x1} ${y1}" stroke="#ffe08a" stroke-width="${line}"/>`;
      figure.querySelector("[data-hu]").textContent = `${length}\u00a0mm`;
    }
    frame.tabIndex = 0;
    let drag = null;
    figure.querySelector("input[type=range]").addEventListener("input", (event) => {
      step(view, Number(event.target.value) - state.slices[view]);
    });
    frame.addEventListener("wheel", (event) => {
      if (document.activeElement !== frame) return; // a page that is only scrolled past keeps scrolling
      event.preventDefault();
      step(view, event.deltaY > 0 ? 1 : -1);
    }, { passive: false });
    frame.addEventListener("keydown", (event) => {
      const by = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5 }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      step(view, by);
    });
    frame.addEventListener("pointerdown", (event) => {
      drag = {
        x: event.clientX, y: event.clientY, from: state.slices[view], moved: false,
        start: shareAt(view, event), window: [...header.windows[state.window]],
      };
      ruler.replaceChildren();
      frame.setPointerCapture(event.pointerId);
    });
    frame.addEventListener("pointermove", (event) => {
      const [z, y, x] = voxelAt(view, event);
      const { shape, values } = volumes[state.volume];
      figure.querySelector("[data-hu]").textContent =
        `${Math.round(values[(z * shape[1] + y) * shape[2] + x])}\u00a0HU`.replace("-", "−");
      if (!drag) return;
      if (state.drag === "ruler") {
        drag.moved = true;
        measure(drag.start, shareAt(view, event));
        return;
      }
      if (state.drag === "window") {
        const [low, high] = drag.window;
        const width = Math.max((high - low) * Math.exp((event.clientX - drag.x) / 150), 2);
        const level = (low + high) / 2 + (event.clientY - drag.y) * 3;
        header.windows.free = [level - width / 2, level + width / 2];
        drag.moved ||= Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 2;
        if (drag.moved) change({ window: "free" });
        return;
      }
      const by = Math.round((event.clientX - drag.x) / 8);
      drag.moved ||= by !== 0;
      if (drag.moved) step(view, drag.from + by - state.slices[view]);
    });
    frame.addEventListener("pointerup", (event) => {
      if (drag && !drag.moved) {
        const voxel = voxelAt(view, event);
        change({ slices: Object.fromEntries(VIEWS.map((name) => [name, voxel[AXES[name][0]]])) }, "planes moved to the point");
      }
      drag = null;
    });
    frame.addEventListener("pointercancel", () => (drag = null));
    frame.addEventListener("pointerleave", () => (figure.querySelector("[data-hu]").textContent = ""));
  }

  // Keys anywhere on the page, except in a form field.
  const outputs = ["none", ...header.outputs];
  const keys = {
    o: () => change({ output: cycle(outputs, state.output) }, state.output),
    O: () => change({ output: cycle(outputs, state.output, -1) }),
    m: () => methods.length && change({ method: cycle(methods, state.method) }, `${header.methods[state.method].title}`),
    w: () => change({ window: cycle(Object.keys(header.windows), state.window) }),
    r: () => change({ readers: state.readers.map(() => !state.readers.some(Boolean)) }),
    c: () => change({ consensus: !state.consensus }),
    s: () => change({ scale: state.scale === "shared" ? "own" : "shared" }),
    t: () => change({ smooth: !state.smooth }),
    v: () => change({ volume: cycle(Object.keys(volumes), state.volume) }),
    h: () => { home(); change({ zoom: 1 }); },
    d: () => change({ drag: cycle(["slices", "window", "ruler"], state.drag) }),
    l: () => change({ drag: state.drag === "ruler" ? "slices" : "ruler" }),
    "+": () => nearer(2),
    "-": () => nearer(0.5),
    f: () => fill(),
    n: () => go("next"),
    p: () => go("previous"),
    "[": () => change({ opacity: Math.max(0, Math.round(10 * state.opacity - 1) / 10) }),
    "]": () => change({ opacity: Math.min(1, Math.round(10 * state.opacity + 1) / 10) }),
  };
  document.addEventListener("keydown", (event) => {
    const typing = /^(SELECT|TEXTAREA)$/.test(event.target.tagName) || event.target.type === "text";
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = /^[0-9]$/.test(event.key) && outputs[event.key] ? () => change({ output: outputs[event.key] }) : keys[event.key];
    if (!act) return;
    act();
    if (state.method) say(`${state.output} map, ${header.methods[state.method].title}, ${state.window} window, opacity ${state.opacity}`);
  });

  root.classList.add("ready");
  for (const element of document.querySelectorAll("[data-live]")) element.hidden = false;
  draw();
})();
