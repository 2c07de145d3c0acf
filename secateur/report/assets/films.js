/* Training, played: one film, one layer, one moment, which every panel follows. */
(() => {
  "use strict";
  const { inflate, tip, told, pick, state: page } = window.secateur;
  const draw = window.secateurFilms;
  const { films, controls, labels } = JSON.parse(document.getElementById("film-data").textContent);
  const section = document.getElementById("films");
  const find = (name) => document.getElementById(`film-${name}`);
  const parts = (name) => section.querySelectorAll(`[data-part="${name}"]`);
  const hide = (name, hidden) => parts(name).forEach((node) => (node.hidden = hidden));
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const FRAMES_A_SECOND = 8;
  const state = { film: null, index: -1, layer: "", at: 0, lit: -1 };
  const cache = {}; // what is the same at every frame, until a control changes it
  const chosen = new Set(); // controls that a person set: no default replaces them
  let ink = draw.theme();
  let playing = 0;

  // ---- which film ------------------------------------------------------------------------------

  const same = (one, two) => String(one) === String(two);

  /** The film of most agreement with `place`; of those with the value of `name`, where one is named. */
  function nearest(place, name) {
    let best = -1;
    let most = -1;
    films.forEach((film, index) => {
      if (name && !same(film.place[name], place[name])) return;
      const agreed = Object.keys(place).filter((key) => same(film.place[key], place[key])).length + 0.5 * (index === state.index);
      if (agreed > most) [best, most] = [index, agreed];
    });
    return best;
  }

  /** The film of the page's selection, if there is one at its level; else the present one stays. */
  function follow(selected) {
    const weights = { branch: 2, seed: 1 };
    let best = -1;
    let most = -1;
    films.forEach((film, index) => {
      if ("level" in film.row && !same(film.row.level, selected.level)) return;
      let agreed = 0;
      for (const key of Object.keys(weights)) if (key in film.row && same(film.row[key], selected[key])) agreed += 10 * weights[key];
      if (state.film) agreed += Object.keys(film.place).filter((key) => same(film.place[key], state.film.place[key])).length + 0.5 * (index === state.index);
      if (agreed > most) [best, most] = [index, agreed];
    });
    return best;
  }

  let asked = -1;
  async function take(index, tellPage = false) {
    if (index < 0 || index === asked) return;
    asked = index;
    const before = state.film;
    const film = await draw.load(films[index], inflate);
    if (index !== asked) return; // another was asked for meanwhile
    const sameSteps = before && before.steps.join() === film.steps.join();
    const part = before ? state.at / Math.max(1, before.frames - 1) : 0;
    Object.assign(state, { film, index, lit: -1 });
    state.at = sameSteps ? state.at : playing ? part * (film.frames - 1) : Math.round(part * (film.frames - 1));
    fillFilm();
    if (tellPage) pick(film.row);
  }

  // ---- controls --------------------------------------------------------------------------------

  function fill(select, values, value) {
    if (!select) return;
    select.replaceChildren(...values.map(([name, words]) => Object.assign(document.createElement("option"), { value: name, textContent: words })));
    if (value !== undefined && values.some(([name]) => same(name, value))) select.value = value;
  }

  const spoken = (name, value) => (value === undefined || value === null ? "–" : name === "branch" ? labels[value] ?? String(value).replaceAll("_", " ") : typeof value === "number" ? draw.short(value) : String(value).replaceAll("_", " "));

  for (const { name, values } of controls) {
    const select = section.querySelector(`select[data-place="${CSS.escape(name)}"]`);
    fill(select, values.map((value) => [value, spoken(name, value)]));
    select.addEventListener("change", () => take(nearest({ ...state.film.place, [name]: select.value }, name), true));
  }

  /** After another film: its choices, layers and frames. */
  function fillFilm() {
    const { film } = state;
    for (const { name } of controls) section.querySelector(`select[data-place="${CSS.escape(name)}"]`).value = String(film.place[name]);
    const layers = [...new Set([...Object.keys(film.layers), ...Object.keys(film.grams)])];
    if (!layers.includes(state.layer)) state.layer = layers[0] ?? "";
    fill(find("layer"), layers.map((name) => [name, name.replace(/\/kernel$/, "")]), state.layer);
    hide("layers", layers.length < 2);
    find("frame").max = film.frames - 1;
    const losses = Object.values(film.losses).flat();
    const positive = losses.every((v) => v > 0);
    if (!chosen.has("up")) find("up").value = positive && Math.max(...losses) > 30 * Math.min(...losses) ? "log" : "linear";
    if (!chosen.has("across")) {
      const [last, half] = [film.steps.at(-1), film.steps[film.frames >> 1]];
      find("across").value = last > 20 * Math.max(1, half) ? "log" : "steps";
    }
    fillLayer();
  }

  const NAMES = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"];

  /** After another layer: which panels there are, and which of their controls mean anything. */
  function fillLayer() {
    const layer = state.film.layers[state.layer];
    const grams = state.film.grams[state.layer];
    hide("vectors", !layer);
    hide("grams", !grams);
    if (layer) {
      const directions = NAMES.slice(0, layer.coordinates).map((name, c) => [c, `${name}${layer.held ? ` (${(100 * layer.held[c]).toFixed(0)}%)` : ""}`]);
      const [x, y] = [find("x").value || 0, find("y").value || 1];
      fill(find("x"), directions, x);
      fill(find("y"), directions, y);
      if (find("x").value === find("y").value) [find("x").value, find("y").value] = ["0", "1"];
      hide("projection", layer.coordinates <= 2);
      if (!chosen.has("lengths")) {
        let most = 0;
        for (let unit = 0; unit < layer.units; unit += 1) most = Math.max(most, layer.norm(0, unit));
        find("lengths").value = most < 0.02 * layer.longest ? "log" : "common";
      }
    }
    if (grams) {
      const networks = Object.keys(grams.networks);
      const [left, right] = [find("left").value || networks[0], find("right").value || networks[1]];
      fill(find("left"), networks.map((name) => [name, name]), left);
      fill(find("right"), networks.map((name) => [name, name]), right);
      if (networks.length > 1 && find("left").value === find("right").value) [find("left").value, find("right").value] = networks;
      hide("second", networks.length < 2);
      const alone = networks.length < 3; // nothing to choose between: names, no control
      hide("networks", alone);
      for (const side of ["left", "right"]) put(`${side}-name`, alone ? find(side).value : "");
    }
    forget();
  }

  /** What does not depend on the frame is made anew at the next drawing. */
  function forget() {
    for (const name of Object.keys(cache)) delete cache[name];
    const layer = state.film?.layers[state.layer];
    if (layer) {
      hide("forces", find("layout").value !== "forces");
      const [cutoff, definition] = [Number(find("cutoff").value), find("definition").value];
      const x = draw.cosineAt(cutoff, layer.scale[definition], definition);
      const words = `A ≥ ${cutoff.toFixed(3)}, inner product ≥ ${x < -1 ? "−1" : x.toFixed(2).replace("-", "−")}`;
      find("cutoff-words").textContent = words;
      find("cutoff").setAttribute("aria-valuetext", words);
    }
    hide("scale", find("entries").value === "cosine");
    show();
  }

  for (const name of ["across", "up", "x", "y", "lengths", "trails", "cutoff", "definition", "layout", "spread", "names", "left", "right", "entries", "scale"]) {
    find(name).addEventListener("input", () => {
      chosen.add(name);
      if (name === "x" || name === "y") keepApart(name, name === "x" ? "y" : "x", state.film.layers[state.layer].coordinates);
      if (name === "left" || name === "right") keepApart(name, name === "left" ? "right" : "left");
      forget();
    });
  }

  /** Two choices of one list that may not be the same: the other one gives way. */
  function keepApart(mine, other) {
    const [a, b] = [find(mine), find(other)];
    if (a.value === b.value) b.selectedIndex = (b.selectedIndex + 1) % b.options.length;
  }

  find("layer").addEventListener("change", (event) => {
    Object.assign(state, { layer: event.target.value, lit: -1 });
    fillLayer();
  });

  // ---- the moment ------------------------------------------------------------------------------

  function go(at) {
    state.at = Math.max(0, Math.min(state.film.frames - 1, at));
    show();
  }

  function stop() {
    cancelAnimationFrame(playing);
    playing = 0;
    find("play").setAttribute("aria-pressed", "false");
    if (state.film) go(Math.round(state.at));
  }

  function play() {
    if (playing) return stop();
    if (!state.film || state.film.frames < 2) return;
    if (state.at >= state.film.frames - 1) go(0);
    find("play").setAttribute("aria-pressed", "true");
    let before = performance.now();
    const tick = (now) => {
      state.at += (Math.max(0, Math.min(now - before, 250)) / 1000) * FRAMES_A_SECOND * Number(find("speed").value);
      before = now;
      if (state.at >= state.film.frames - 1) return stop();
      show();
      playing = requestAnimationFrame(tick);
    };
    playing = requestAnimationFrame(tick);
  }

  find("play").addEventListener("click", play);
  find("frame").addEventListener("input", (event) => {
    const at = Number(event.target.value);
    if (playing) stop();
    go(at);
  });
  section.addEventListener("keydown", (event) => {
    if (!state.film || !event.target.matches("canvas, #film-play")) return; // the rest have keys of their own
    const { frames } = state.film;
    const to = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 10, PageDown: -10, Home: -frames, End: frames }[event.key];
    if (to === undefined && (event.key !== " " || event.target.id === "film-play")) return;
    event.preventDefault();
    if (event.key === " ") return play();
    if (playing) stop();
    go(Math.round(state.at) + to);
  });
  for (const name of ["loss", "apart"]) {
    const canvas = find(name);
    const drag = (event) => {
      const places = cache[`${name} places`];
      if (!places) return;
      const x = event.clientX - canvas.getBoundingClientRect().left;
      let best = 0;
      places.forEach((place, frame) => (best = Math.abs(place - x) < Math.abs(places[best] - x) ? frame : best));
      go(best);
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (playing) stop();
      canvas.setPointerCapture(event.pointerId);
      drag(event);
    });
    canvas.addEventListener("pointermove", (event) => event.buttons && drag(event));
  }

  // ---- drawing ---------------------------------------------------------------------------------

  const get = (name, make) => (cache[name] ??= make());

  function show() {
    const { film } = state;
    if (!film) return;
    const at = still.matches ? Math.floor(state.at) : state.at;
    const frame = Math.round(at);
    const words = `step ${film.steps[frame].toLocaleString("en")} · frame ${frame + 1} of ${film.frames}`;
    find("frame").value = frame;
    find("frame").setAttribute("aria-valuetext", words);
    find("words").textContent = words;
    const how = { steps: film.steps, across: find("across").value };
    const curves = Object.entries(film.losses).map(([name, values]) => ({ name, values }));
    cache["loss places"] = draw.chart(find("loss"), curves, at, { ...how, log: find("up").value === "log" }, ink);
    spell(find("loss"), frame, `${words}, ${curves.map((c) => `${c.name} ${draw.short(c.values[frame])}`).join(", ")}`);
    const layer = film.layers[state.layer];
    if (layer) showLayer(film, layer, at, frame);
    const grams = film.grams[state.layer];
    if (grams) showGrams(film, grams, at, frame, how);
  }

  function spell(canvas, frame, words) {
    for (const [name, value] of [["min", 0], ["max", state.film.frames - 1], ["now", frame], ["text", words]]) canvas.setAttribute(`aria-value${name}`, value);
  }

  function showLayer(film, layer, at, frame) {
    const [a, b] = layer.coordinates > 2 ? [Number(find("x").value), Number(find("y").value)] : [0, 1];
    const lengths = find("lengths").value;
    const made = get("tips", () => draw.tips(layer, film.frames, a, b, lengths));
    const trail = find("trails").value === "all" ? film.frames : Number(find("trails").value);
    cache.tipPlaces = draw.vectors(find("vectors"), layer, made, at, { trail, lit: state.lit }, ink);
    const held = layer.held ? `${(100 * (layer.held[a] + layer.held[b])).toFixed(0)}%` : "all";
    const sides = layer.signs ? " Blue units are for, orange ones against." : "";
    const unit = { common: "The outer circle is the longest of all frames.", frame: "The outer circle is the longest of this frame.", log: `Distances from the middle are logarithmic, from ${draw.short(layer.blocks.norms.low)} to ${draw.short(layer.longest)} at the outer circle.` }[lengths];
    put("vectors-words", `${layer.units} units. ${layer.exact ? "Exact: these vectors lie in the plane." : `Principal directions; these two hold ${held} of the squared length.`} ${unit}${sides}`);
    find("vectors").setAttribute("aria-label", `Weight vectors of ${layer.units} units of ${state.layer} at step ${film.steps[frame]}`);

    const [cutoff, definition] = [Number(find("cutoff").value), find("definition").value];
    const joined = get(`edges ${frame}`, () => draw.edges(layer, frame, definition, cutoff));
    const floor = Math.floor(at);
    const next = Math.min(film.frames - 1, floor + 1);
    let places;
    if (find("layout").value === "forces") {
      const layout = get("layout", () => draw.layout(layer, definition, cutoff, Number(find("spread").value)));
      places = [layout(floor), layout(next)];
    } else {
      places = [floor, next].map((t) => made.flat[t].map((v) => v * made.scale[t]));
    }
    cache.nodePlaces = draw.graph(find("graph"), layer, joined, ...places, at, { cutoff, lit: state.lit, names: find("names").checked }, ink);
    const { count, largest } = get(`components ${frame}`, () => draw.components(layer.units, joined));
    const pairs = (layer.units * (layer.units - 1)) / 2;
    const graph = `${joined.length.toLocaleString("en")} of ${pairs.toLocaleString("en")} pairs are joined: ${count} ${count === 1 ? "component" : "components"}, ${largest} ${largest === 1 ? "unit" : "units"} in the largest.`;
    put("graph-words", `${graph} A node is as large as its weight vector is long, next to the longest of all frames.`);
    find("graph").setAttribute("aria-label", `Alignment graph of ${state.layer} at step ${film.steps[frame]}: ${graph}`);
  }

  function showGrams(film, grams, at, frame, how) {
    const cosine = find("entries").value === "cosine";
    const scale = find("scale").value;
    const two = Object.keys(grams.networks).length > 1;
    const names = [find("left").value, ...(two ? [find("right").value] : [])];
    const top = (name, t) => get(`top ${name} ${t}`, () => grams.networks[name].top(t));
    const both = (t) => Math.max(...names.map((name) => top(name, t)));
    const all = scale === "common" ? get("top", () => Math.max(...film.steps.map((_, t) => both(t)))) : 0;
    for (const [k, name] of names.entries()) {
      const canvas = find(k ? "gram-right" : "gram-left");
      const most = { frame: top(name, frame), pair: both(frame), common: all }[scale];
      draw.gram(canvas, grams.networks[name], grams.examples, frame, { cosine, top: most }, film.labels, film.classes, ink);
      canvas.setAttribute("aria-label", `Gram matrix of ${state.layer}, ${name}, ${grams.examples} examples, at step ${film.steps[frame]}`);
    }
    draw.key(find("key"), ink);
    const most = cosine ? 1 : scale === "frame" ? null : scale === "pair" ? both(frame) : all;
    put("key-low", most === null ? "− largest" : draw.short(-most));
    put("key-high", most === null ? "largest" : draw.short(most));
    put("grams-title", `Gram matrices of ${state.layer.replace(/\/kernel$/, "")}, ${grams.examples} examples${film.labels ? ", by class" : ""}`);
    if (!two) return;
    const apart = grams.distances.find((d) => d.of === names[0] && d.to === names[1]);
    const curves = [{ name: "distance", values: apart.relative, ink: 2 }, { name: "alignment", values: apart.alignment, ink: 3 }];
    put("distance", `Relative distance |G ${names[0]} − G ${names[1]}| / |G ${names[1]}| = ${draw.short(apart.relative[frame])}, alignment (not centred) ${draw.short(apart.alignment[frame])}`);
    cache["apart places"] = draw.chart(find("apart"), curves, at, { ...how, log: false }, ink);
    spell(find("apart"), frame, find("distance").textContent);
  }

  function put(name, words) {
    const node = find(name);
    if (node.textContent !== words) node.textContent = words;
  }

  draw.hover({ find, state, cache, show, tip });

  // ---- the page around it ----------------------------------------------------------------------

  const repaint = () => {
    ink = draw.theme();
    show();
  };
  new MutationObserver(repaint).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  matchMedia("print").addEventListener("change", repaint);
  new ResizeObserver(show).observe(section);

  let following = `${page.branch} ${page.seed} ${page.level}`;
  told.push((selected) => {
    const now = `${selected.branch} ${selected.seed} ${selected.level}`;
    if (now === following) return;
    following = now;
    take(follow(selected));
  });
  const first = follow(page);
  take(first < 0 ? 0 : first).then(() => section.classList.add("ready"));
})();
