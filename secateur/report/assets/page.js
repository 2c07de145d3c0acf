/* The page's script: one selection (branch, seed, level) that figures, maps, table and cards follow. */
(() => {
  "use strict";
  const find = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const root = document.documentElement;
  const data = JSON.parse(find("#page-data").textContent);
  const label = Object.fromEntries(data.branches.map((branch) => [branch.name, branch.label]));
  const state = { ...data.first };
  const views = [];
  /** What the films' script shares with this one; it adds itself to `told`. */
  const shared = (window.secateur = { state, tip, inflate, told: [], pick });
  let maps = null; // counts of live weights, one array a map, once inflated
  root.classList.add("scripted");

  const percent = (density) => {
    const shown = 100 * density;
    const digits = shown > 0 && shown < 1 ? Math.max(1, 1 - Math.floor(Math.log10(shown))) : 1;
    return shown.toFixed(digits) + "%";
  };

  async function inflate(base64, format) {
    const bytes = Uint8Array.from(atob(base64.trim()), (sign) => sign.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream(format));
    return new Response(stream);
  }

  // ---- selection -----------------------------------------------------------------------------

  function levelsOf(branch, seed) {
    return Object.keys(data.runs[branch]?.[seed] ?? {}).map(Number).sort((a, b) => a - b);
  }

  /** Change what is selected; a run that does not exist gives way to the branch's first seed. */
  function select(change) {
    Object.assign(state, change);
    const seeds = data.runs[state.branch] ?? {};
    if (!(state.seed in seeds) && Object.keys(seeds).length) state.seed = Number(Object.keys(seeds)[0]);
    show();
  }

  /** Select what a film belongs to, as far as it is a run of this page. */
  function pick(row) {
    const run = { ...state, ...row };
    if (data.runs[run.branch]?.[run.seed]?.[run.level]) select(run);
  }

  function show() {
    const run = data.runs[state.branch]?.[state.seed] ?? {};
    const here = run[state.level];
    const part = !here ? "not reached" : here[0] === null ? "" : `${percent(here[0])} of weights`;
    for (const button of all("#branches button")) button.setAttribute("aria-pressed", button.dataset.branch === state.branch);
    for (const button of all("#seeds button")) button.setAttribute("aria-pressed", Number(button.dataset.seed) === state.seed);
    put("#selected", `${label[state.branch]}, seed ${state.seed}, level ${state.level}${part && ` (${part})`}`);
    put("#table-where", `${label[state.branch]}, seed ${state.seed}`);
    put("#maps-where", `: seed ${state.seed}, level ${state.level}`);
    put("#level-words", `${state.level}${part && ` · ${part}`}`);
    const slider = find("#level");
    if (slider) {
      slider.value = state.level;
      slider.setAttribute("aria-valuetext", `level ${state.level}${part && `, ${part}`}`);
    }
    const mine = (node) => node.dataset.branch === state.branch && Number(node.dataset.seed) === state.seed;
    for (const node of all(".card, .runs a")) node.classList.toggle("here", mine(node));
    fillTable(run);
    paintMaps();
    for (const view of views) {
      view.signal("picked_branch", state.branch).signal("picked_seed", state.seed);
      view.signal("picked_level", state.level).runAsync();
    }
    for (const tell of shared.told) tell(state);
  }

  function put(selector, text) {
    const node = find(selector);
    if (node && node.textContent !== text) node.textContent = text;
  }

  // ---- density by layer and level --------------------------------------------------------------

  function fillTable(run) {
    for (const line of all("#heat tbody tr")) {
      const row = run[line.dataset.level];
      const [, whole, ...rest] = line.children;
      line.classList.toggle("here", Number(line.dataset.level) === state.level);
      whole.textContent = row && row[0] !== null ? percent(row[0]) : "–";
      rest.pop().textContent = row ? row[2] : "";
      rest.forEach((cell, layer) => {
        const density = row ? row[1][layer] : null;
        cell.textContent = density === null ? "–" : percent(density);
        const shade = density > 1e-3 ? 1 + Math.log10(density) / 3 : 0;
        cell.style.setProperty("--shade", shade.toFixed(3));
      });
    }
  }

  // ---- maps of live inputs -----------------------------------------------------------------------

  /** The map colours of the present theme as [r, g, b]. */
  function ramp() {
    const probe = document.createElement("span");
    document.body.append(probe);
    const pixel = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
    const colours = [0, 1, 2, 3].map((place) => {
      probe.style.color = `var(--map${place})`;
      pixel.fillStyle = getComputedStyle(probe).color;
      pixel.fillRect(0, 0, 1, 1);
      return [...pixel.getImageData(0, 0, 1, 1).data.slice(0, 3)];
    });
    probe.remove();
    return colours;
  }

  /** Colour of a count: the ground for none, then evenly from map1 to map3, which is for the most. */
  function tone(count, most, colours) {
    if (count <= 0) return colours[0];
    const part = (2 * count) / most;
    const [from, to] = part < 1 ? [colours[1], colours[2]] : [colours[2], colours[3]];
    const along = part < 1 ? part : part - 1;
    return from.map((value, channel) => value + (to[channel] - value) * along);
  }

  function paint(canvas, counts, most, colours) {
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    counts.forEach((count, place) => image.data.set([...tone(count, most, colours), 255], 4 * place));
    context.putImageData(image, 0, 0);
  }

  function paintMaps() {
    if (!maps) return;
    const colours = ramp();
    const figures = all("#maps figure");
    const indices = figures.map((figure) => data.maps.index[figure.dataset.branch]?.[state.seed]?.[state.level]);
    const most = Math.max(1, ...indices.flatMap((index) => (index === undefined ? [] : [...maps[index]])));
    for (const [place, figure] of figures.entries()) {
      const index = indices[place];
      const canvas = figure.querySelector("canvas");
      const counts = index === undefined ? new Uint16Array(data.maps.width * data.maps.height) : maps[index];
      const live = counts.reduce((n, count) => n + (count > 0), 0);
      const words = index === undefined ? "level not reached" : `${live} of ${counts.length} inputs live`;
      paint(canvas, counts, most, colours);
      canvas.counts = counts;
      canvas.setAttribute("aria-label", `First-layer mask, ${label[figure.dataset.branch]}, level ${state.level}: ${words}`);
      figure.querySelector(".live").textContent = words;
      figure.classList.toggle("here", figure.dataset.branch === state.branch);
    }
    const bar = find("#scale canvas");
    paint(bar, Array.from({ length: bar.width }, (_, x) => (x < 24 ? 0 : (x - 23) / (bar.width - 24))), 1, colours);
    find("#scale span").textContent = `none, then up to ${most}, the most at this level`;
  }

  async function loadMaps() {
    if (!data.maps) return;
    const { count, height, width } = data.maps;
    const planes = new Uint8Array(await (await inflate(data.maps.packed, "deflate")).arrayBuffer());
    const size = height * width;
    const half = planes.length / 2;
    maps = Array.from({ length: count }, (_, k) =>
      Uint16Array.from({ length: size }, (_, i) => planes[k * size + i] + 256 * planes[half + k * size + i]));
    for (const figure of all("#maps figure")) {
      const canvas = Object.assign(document.createElement("canvas"), { width, height });
      canvas.setAttribute("role", "img");
      figure.querySelector("img").replaceWith(canvas);
      canvas.addEventListener("pointermove", (event) => {
        const box = canvas.getBoundingClientRect();
        const column = Math.min(width - 1, Math.floor(((event.clientX - box.left) / box.width) * width));
        const line = Math.min(height - 1, Math.floor(((event.clientY - box.top) / box.height) * height));
        const n = canvas.counts[line * width + column];
        tip(event, { title: `${n} live ${n === 1 ? "weight" : "weights"}`, Input: `row ${line}, column ${column}` });
      });
      canvas.addEventListener("pointerleave", () => tip(null));
      canvas.addEventListener("click", () => select({ branch: figure.dataset.branch }));
    }
    paintMaps();
  }

  // ---- figures -----------------------------------------------------------------------------------

  const box = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
  document.body.append(box);

  /** Show {title, name: value, ...} beside the pointer; nothing hides it. */
  function tip(event, value) {
    box.hidden = !value;
    if (!value) return;
    const { title, ...rest } = value;
    const heading = document.createElement("b");
    heading.textContent = title;
    box.replaceChildren(heading, ...Object.entries(rest).map(([name, text]) => {
      const line = document.createElement("div");
      for (const words of [name, text]) line.append(Object.assign(document.createElement("span"), { textContent: words }));
      return line;
    }));
    const x = Math.min(event.clientX + 16, innerWidth - box.offsetWidth - 8);
    const y = event.clientY + 18 + box.offsetHeight > innerHeight ? event.clientY - box.offsetHeight - 12 : event.clientY + 18;
    box.style.left = `${Math.max(8, x)}px`;
    box.style.top = `${y}px`;
  }

  async function loadFigures() {
    const specs = all("script.spec");
    if (!specs.length) return;
    const code = await (await inflate(find("#bundle").textContent, "gzip")).text();
    const script = document.createElement("script");
    script.textContent = `{${code}}`; // a block keeps the bundle's names to itself
    document.head.append(script);
    const narrow = innerWidth <= 720;
    for (const source of specs) {
      const target = document.getElementById(source.dataset.for);
      const spec = JSON.parse(source.textContent);
      spec.height = narrow ? 280 : target.closest("figure").classList.contains("main") ? 400 : 280;
      const { view } = await window.vegaEmbed(target, spec, {
        actions: false,
        ast: true, // expressions are interpreted, so the page's policy can forbid eval
        renderer: "svg",
        tooltip: (_, event, __, value) => tip(event, value === null || value === "" ? null : value),
      });
      view.addEventListener("click", (_, item) => {
        const datum = item?.datum;
        if (!datum?.branch) return;
        const onPoint = item.mark.marktype === "symbol" && datum.level !== undefined;
        select(onPoint ? { branch: datum.branch, level: datum.level } : { branch: datum.branch });
      });
      view.addEventListener("mouseover", (_, item) => hover(item?.datum?.branch ?? ""));
      target.addEventListener("pointerleave", () => hover(""));
      views.push(view);
    }
    show();
    root.classList.add("ready");
  }

  let hovered = "";
  function hover(branch) {
    if (branch === hovered) return;
    hovered = branch;
    for (const view of views) view.signal("hovered", branch).runAsync();
  }

  // ---- controls ----------------------------------------------------------------------------------

  for (const button of all("#branches button")) {
    button.addEventListener("click", () => select({ branch: button.dataset.branch }));
    button.addEventListener("pointerenter", () => hover(button.dataset.branch));
    button.addEventListener("pointerleave", () => hover(""));
  }
  for (const button of all("#seeds button")) button.addEventListener("click", () => select({ seed: Number(button.dataset.seed) }));
  for (const link of all(".runs a")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      select({ branch: link.dataset.branch, seed: Number(link.dataset.seed) });
    });
  }
  for (const line of all("#heat tbody tr")) line.addEventListener("click", () => select({ level: Number(line.dataset.level) }));
  find("#level")?.addEventListener("input", (event) => {
    stop();
    select({ level: Number(event.target.value) });
  });

  let playing = 0;
  function stop() {
    clearInterval(playing);
    playing = 0;
    find("#play")?.setAttribute("aria-pressed", "false");
  }
  find("#play")?.addEventListener("click", () => {
    if (playing) return stop();
    const slider = find("#level");
    const [least, most] = [Number(slider.min), Number(slider.max)];
    if (state.level >= most) select({ level: least });
    find("#play").setAttribute("aria-pressed", "true");
    playing = setInterval(() => {
      select({ level: state.level + 1 });
      if (state.level >= most) stop();
    }, 450);
  });

  for (const button of all(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {
        getSelection().selectAllChildren(code); // without a clipboard, at least select it
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }

  // ---- light and dark ----------------------------------------------------------------------------

  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  find("#theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    paintMaps();
  });
  system.addEventListener("change", paintMaps);
  matchMedia("print").addEventListener("change", paintMaps);
  let shown = null; // the theme to come back to while the page is on its way to paper
  addEventListener("beforeprint", () => { // maps are pixels: no style turns them light
    shown ??= root.dataset.theme ?? "system";
    root.dataset.theme = "light";
    paintMaps();
  });
  addEventListener("afterprint", () => {
    if (shown === "system") delete root.dataset.theme;
    else if (shown) root.dataset.theme = shown;
    shown = null;
    paintMaps();
  });

  show();
  loadFigures();
  loadMaps();
})();
