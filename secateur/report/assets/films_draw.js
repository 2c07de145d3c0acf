/* The panels of a film, on canvas: vectors, graph, Gram matrices. */
(() => {
  "use strict";
  const { css, open, short } = window.secateurFilms;
  const mix = (one, two, part) => one.map((value, channel) => Math.round(value + (two[channel] - value) * part));

  // ---- vectors ---------------------------------------------------------------------------------

  /**
   * Where the tips stand, in units of the panel's radius: one Float32Array (2 units) a frame.
   * lengths: "common" (over the longest of all frames), "frame" (of each), "log" (the longest of all
   * at 1, the shortest near the middle).
   */
  function tips(layer, frames, a, b, lengths) {
    const flat = Array.from({ length: frames }, (_, t) => {
      const found = new Float32Array(2 * layer.units);
      for (let i = 0; i < layer.units; i += 1) {
        found[2 * i] = layer.norm(t, i) * layer.along(t, i, a);
        found[2 * i + 1] = layer.norm(t, i) * layer.along(t, i, b);
      }
      return found;
    });
    const longest = flat.map((found) => {
      let most = 0;
      for (let i = 0; i < layer.units; i += 1) most = Math.max(most, Math.hypot(found[2 * i], found[2 * i + 1]));
      return most;
    });
    const top = Math.max(...longest) || 1;
    if (lengths !== "log") return { flat, scale: longest.map((own) => 1 / (lengths === "frame" ? own || 1 : top)) };
    const least = layer.blocks.norms.low;
    const span = Math.log(layer.longest / least) || 1;
    for (const [t, found] of flat.entries()) {
      for (let i = 0; i < layer.units; i += 1) {
        const norm = layer.norm(t, i);
        const far = norm ? (0.06 + 0.94 * (Math.log(norm / least) / span)) / norm : 0;
        found[2 * i] *= far;
        found[2 * i + 1] *= far;
      }
    }
    return { flat, scale: longest.map(() => 1) };
  }

  /** Between two frames for the eye, while it plays; both are those of the data. */
  function between(one, two, part) {
    if (!part) return one;
    return one.map((value, k) => value + part * (two[k] - value));
  }

  const colourOf = (layer, unit, ink) => ink[layer.signs && layer.signs[unit] < 0 ? "c1" : "c0"];

  /** Returns [x, y] of each tip on the canvas, for the pointer. */
  function vectors(canvas, layer, made, at, how, ink) {
    const paper = open(canvas);
    if (!paper) return [];
    const { pen, width, height } = paper;
    const middle = [width / 2, height / 2];
    const radius = Math.min(width, height) / 2 - 22;
    const floor = Math.floor(at);
    const part = at - floor;
    const next = Math.min(floor + 1, made.flat.length - 1);
    const scale = radius * (made.scale[floor] + part * (made.scale[next] - made.scale[floor]));
    const place = (found, unit) => [middle[0] + scale * found[2 * unit], middle[1] - scale * found[2 * unit + 1]];

    pen.strokeStyle = css(ink.rule);
    pen.lineWidth = 1;
    for (const far of [0.5, 1]) {
      pen.beginPath();
      pen.arc(...middle, far * radius, 0, 7);
      pen.stroke();
    }
    pen.beginPath();
    pen.moveTo(middle[0] - radius, middle[1]);
    pen.lineTo(middle[0] + radius, middle[1]);
    pen.moveTo(middle[0], middle[1] - radius);
    pen.lineTo(middle[0], middle[1] + radius);
    pen.stroke();
    if (layer.patterns && layer.coordinates === 2) {
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      for (const [x, y] of layer.patterns) {
        const long = Math.hypot(x, y) || 1;
        pen.strokeStyle = css(ink.quiet, 0.8);
        pen.setLineDash([3, 4]);
        pen.beginPath();
        pen.moveTo(...middle);
        pen.lineTo(middle[0] + (radius * x) / long, middle[1] - (radius * y) / long);
        pen.stroke();
        pen.setLineDash([]);
        pen.fillStyle = css(ink.quiet);
        const out = radius + 26;
        pen.fillText(`(${short(x)}, ${short(y)})`, middle[0] + (out * x) / long, middle[1] - (out * y) / long);
      }
    }
    const now = between(made.flat[floor], made.flat[next], part);
    const faint = layer.units > 60 ? 0.5 : 1;
    for (let unit = 0; unit < layer.units; unit += 1) {
      const colour = colourOf(layer, unit, ink);
      const lit = how.lit === unit;
      const tip = place(now, unit);
      if (how.trail > 0) {
        pen.strokeStyle = css(colour, lit ? 0.9 : 0.35 * faint);
        pen.lineWidth = lit ? 2 : 1.2;
        pen.beginPath();
        for (let t = Math.max(0, floor - how.trail + 1); t <= floor; t += 1) pen.lineTo(...place(made.flat[t], unit));
        pen.lineTo(...tip);
        pen.stroke();
      }
      pen.strokeStyle = css(colour, lit ? 1 : 0.55 * faint);
      pen.lineWidth = lit ? 2.4 : 1.4;
      pen.beginPath();
      pen.moveTo(...middle);
      pen.lineTo(...tip);
      pen.stroke();
      pen.fillStyle = css(colour, 0.9);
      pen.beginPath();
      pen.arc(...tip, lit ? 5.5 : 3.2, 0, 7);
      pen.fill();
    }
    return Array.from({ length: layer.units }, (_, unit) => place(now, unit));
  }

  // ---- graph -----------------------------------------------------------------------------------

  /** Nodes of 2 to 12 pixels by their norm over the largest of all times. Returns where they stand. */
  function graph(canvas, layer, joined, one, two, at, how, ink) {
    const paper = open(canvas);
    if (!paper) return [];
    const { pen, width, height } = paper;
    const half = Math.min(width, height) / 2 - 18;
    const floor = Math.floor(at);
    const part = at - floor;
    const now = between(one, two, part);
    const place = (unit) => [width / 2 + half * now[2 * unit], height / 2 - half * now[2 * unit + 1]];
    pen.strokeStyle = css(ink.rule);
    pen.lineWidth = 1;
    pen.strokeRect(0.5, 0.5, width - 1, height - 1);
    const faint = Math.min(1, Math.sqrt(300 / (joined.length || 1))); // many edges do not black the page
    for (const { i, j, a } of joined) {
      const lit = how.lit === i || how.lit === j;
      const strong = (a - how.cutoff) / (1 - how.cutoff || 1);
      pen.strokeStyle = css(ink.ink, lit ? 0.8 : (0.14 + 0.4 * strong) * faint);
      pen.lineWidth = lit ? 1.4 : 1;
      pen.beginPath();
      pen.moveTo(...place(i));
      pen.lineTo(...place(j));
      pen.stroke();
    }
    const places = [];
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    for (let unit = 0; unit < layer.units; unit += 1) {
      const norm = layer.norm(Math.round(at), unit);
      const radius = 2 + 10 * (layer.longest ? norm / layer.longest : 0);
      const [x, y] = place(unit);
      pen.beginPath();
      pen.arc(x, y, radius, 0, 7);
      pen.fillStyle = css(norm ? colourOf(layer, unit, ink) : ink.quiet, 0.88);
      pen.fill();
      pen.strokeStyle = css(how.lit === unit ? ink.ink : ink.paper);
      pen.lineWidth = how.lit === unit ? 2 : 1;
      pen.stroke();
      places.push([x, y, radius]);
    }
    if (how.names) {
      pen.font = pen.font.replace("12px", "10.5px");
      for (const [unit, [x, y, radius]] of places.entries()) {
        pen.lineWidth = 3;
        pen.strokeStyle = css(ink.paper, 0.85);
        pen.strokeText(unit, x + radius + 2, y);
        pen.fillStyle = css(ink.ink);
        pen.fillText(unit, x + radius + 2, y);
      }
    }
    return places;
  }

  // ---- Gram matrices ---------------------------------------------------------------------------

  /** 0 is the ground, 1 the full blue, -1 the full orange; darker than the ground at once. */
  function shade(value, ink) {
    const strong = Math.sqrt(Math.min(1, Math.abs(value)));
    return mix(ink.map0, mix(ink[value < 0 ? "c1" : "c0"], ink.ink, 0.35 * Math.min(1, Math.abs(value))), strong);
  }

  const wide = document.createElement("canvas");
  function gram(canvas, matrix, n, t, how, labels, classes, ink) {
    const paper = open(canvas);
    if (!paper) return;
    const { pen, width } = paper;
    const room = labels ? 20 : 0; // for the names of classes
    const side = width - room;
    Object.assign(wide, { width: n, height: n });
    const image = new ImageData(n, n);
    const table = Array.from({ length: 513 }, (_, k) => shade((k - 256) / 256, ink));
    for (let i = 0; i < n; i += 1) {
      for (let j = 0; j < n; j += 1) {
        const value = how.cosine ? matrix.cosine(t, i, j) : matrix.entry(t, i, j) / (how.top || 1);
        image.data.set([...table[Math.round(256 * Math.max(-1, Math.min(1, value))) + 256], 255], 4 * (i * n + j));
      }
    }
    wide.getContext("2d").putImageData(image, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(wide, room, room, side, side);
    if (!labels) return;
    pen.fillStyle = css(ink.quiet);
    pen.strokeStyle = css(ink.paper);
    pen.lineWidth = 1.5;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    for (let begin = 0; begin < n; ) {
      let end = begin;
      while (end < n && labels[end] === labels[begin]) end += 1;
      const middle = room + ((begin + end) / 2 / n) * side;
      const name = classes[labels[begin]] ?? String(labels[begin]);
      const fits = pen.measureText(name).width < ((end - begin) / n) * side;
      if (fits) {
        pen.fillText(name, middle, room / 2);
        pen.save();
        pen.translate(room / 2, middle);
        if (pen.measureText(name).width > room - 4) pen.rotate(-Math.PI / 2);
        pen.fillText(name, 0, 0);
        pen.restore();
      }
      if (end < n) {
        const line = room + (end / n) * side;
        pen.beginPath();
        pen.moveTo(room, line);
        pen.lineTo(width, line);
        pen.moveTo(line, room);
        pen.lineTo(line, width);
        pen.stroke();
      }
      begin = end;
    }
  }

  function key(canvas, ink) {
    const image = new ImageData(canvas.width, 1);
    for (let x = 0; x < canvas.width; x += 1) image.data.set([...shade((2 * x) / (canvas.width - 1) - 1, ink), 255], 4 * x);
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  Object.assign(window.secateurFilms, { tips, vectors, graph, gram, key });
})();
