/* What all canvases of a film share, and its charts: curves over the frames, with a cursor. */
(() => {
  "use strict";
  const INKS = ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--ink", "--quiet", "--rule", "--paper", "--wash", "--map0"];

  /** The present theme's colours as [r, g, b]; canvas knows no CSS variables. */
  function theme() {
    const probe = document.createElement("span");
    document.body.append(probe);
    const pixel = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
    const found = {};
    for (const name of INKS) {
      probe.style.color = `var(${name})`;
      pixel.fillStyle = getComputedStyle(probe).color;
      pixel.fillRect(0, 0, 1, 1);
      found[name.slice(2)] = [...pixel.getImageData(0, 0, 1, 1).data.slice(0, 3)];
    }
    probe.remove();
    return found;
  }

  const css = (rgb, alpha = 1) => `rgb(${rgb.join(" ")} / ${alpha})`;

  /** A number in few signs. */
  function short(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(1).replace(".0e", "e").replace("e+", "e") : String(Number(value.toPrecision(3)));
    return text.replace(/-/g, "−");
  }

  /** A cleared canvas with a pixel for each of the screen's; null while it is not shown. */
  function open(canvas) {
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width || !height) return null;
    const dense = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(width * dense), Math.round(height * dense)];
    if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
    const pen = canvas.getContext("2d");
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    pen.lineJoin = "round";
    return { pen, width, height };
  }

  // ---- charts ----------------------------------------------------------------------------------

  function ticks(low, high, about) {
    const raw = (high - low) / about;
    if (!(raw > 0)) return [low];
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k += 1) found.push(Number((k * step).toPrecision(12)));
    return found;
  }

  const decades = (low, high) => {
    const found = [];
    for (let k = Math.ceil(Math.log10(low) - 1e-9); 10 ** k <= high * (1 + 1e-9); k += 1) found.push(10 ** k);
    return found.length > 1 ? found.filter((_, k) => k % Math.ceil(found.length / 6) === 0) : [low, high];
  };

  /** Where a frame stands across a chart, before it is scaled. */
  const across = (steps, frame, how) => (how === "frames" ? frame : how === "log" ? Math.log10(1 + steps[frame]) : steps[frame]);

  /**
   * Curves over the frames with a line at the cursor. Returns where frames stand, for the pointer.
   * how: {steps, across, log, low, high (of the axis, if they are given), title}.
   */
  function chart(canvas, curves, at, how, ink) {
    const paper = open(canvas);
    if (!paper) return null;
    const { pen, width, height } = paper;
    const [left, right, top, bottom] = [46, 14, 22, 22];
    const last = how.steps.length - 1;
    const [begin, end] = [across(how.steps, 0, how.across), across(how.steps, last, how.across)];
    const x = (value) => left + ((value - begin) / (end - begin || 1)) * (width - left - right);
    const every = curves.flatMap((curve) => curve.values).filter((v) => v !== null && (!how.log || v > 0));
    let low = how.low ?? Math.min(...every);
    let high = how.high ?? Math.max(...every);
    if (!how.log) low = Math.min(low, 0);
    if (!(high > low)) [low, high] = how.log ? [low / 2 || 0.5, high * 2 || 2] : [low, low + 1];
    const up = how.log ? Math.log10 : (v) => v;
    const y = (value) => height - bottom - ((up(value) - up(low)) / (up(high) - up(low))) * (height - top - bottom);

    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const value of how.log ? decades(low, high) : ticks(low, high, 3)) {
      pen.strokeStyle = css(ink.rule);
      pen.beginPath();
      pen.moveTo(left, y(value));
      pen.lineTo(width - right, y(value));
      pen.stroke();
      pen.fillStyle = css(ink.quiet);
      pen.fillText(short(value), left - 8, y(value));
    }
    pen.textBaseline = "alphabetic";
    pen.textAlign = "center";
    const marks = how.across === "frames" ? ticks(0, last, 6).map((v) => [v, v])
      : how.across === "log" ? [0, ...decades(1, Math.max(1, how.steps[last]))].filter((v) => v >= how.steps[0]).map((v) => [Math.log10(1 + v), v])
        : ticks(begin, end, width < 500 ? 4 : 7).map((v) => [v, v]);
    for (const [place, value] of marks) {
      if (x(place) < left - 1 || x(place) > width - right + 1) continue;
      pen.fillText(value.toLocaleString("en"), Math.min(x(place), width - right - 8), height - 5);
    }

    const places = how.steps.map((_, frame) => x(across(how.steps, frame, how.across)));
    let beside = left;
    for (const [k, curve] of curves.entries()) {
      const colour = css(ink[`c${curve.ink ?? k % 8}`]);
      pen.strokeStyle = pen.fillStyle = colour;
      pen.lineWidth = 2;
      pen.setLineDash(k % 2 ? [5, 4] : []);
      pen.beginPath();
      let down = false;
      curve.values.forEach((value, frame) => {
        const drawn = value !== null && (!how.log || value > 0);
        if (drawn) pen[down ? "lineTo" : "moveTo"](places[frame], y(value));
        down = drawn;
      });
      pen.stroke();
      const now = curve.values[Math.round(at)];
      const words = `${curve.name} ${short(now)}`;
      pen.textAlign = "left";
      pen.beginPath();
      pen.moveTo(beside, 9);
      pen.lineTo(beside + 20, 9);
      pen.stroke();
      pen.setLineDash([]);
      pen.fillStyle = css(ink.ink);
      pen.fillText(words, beside + 26, 13);
      beside += pen.measureText(`${curve.name} −0.0000`).width + 46;
      if (now !== null && (!how.log || now > 0)) {
        pen.fillStyle = colour;
        pen.beginPath();
        pen.arc(places[Math.round(at)], y(now), 4, 0, 7);
        pen.fill();
      }
    }
    const floor = Math.floor(at);
    const here = places[floor] + (at - floor) * ((places[floor + 1] ?? places[floor]) - places[floor]);
    pen.strokeStyle = css(ink.ink, 0.75);
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(here, top - 4);
    pen.lineTo(here, height - bottom);
    pen.stroke();
    return places;
  }

  Object.assign(window.secateurFilms, { theme, css, short, open, chart });
})();
