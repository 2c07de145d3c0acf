/* The alignment graph: weights of edges, components, and a layout without chance. */
(() => {
  "use strict";

  /** The weight of an edge between two units whose directions have the inner product x. */
  function weight(x, scale, definition) {
    const apart = Math.max(0, 1 - x); // rounding leaves a hair above 1
    return definition === "code" ? Math.exp(-((apart / 2 / scale) ** 2)) : Math.exp(-apart / scale ** 2);
  }

  /** Its inverse: the inner product that a cutoff stands for. */
  function cosineAt(cutoff, scale, definition) {
    const log = -Math.log(cutoff);
    return definition === "code" ? 1 - 2 * scale * Math.sqrt(log) : 1 - scale ** 2 * log;
  }

  /** Pairs of at least the cutoff, strongest last so that they are drawn above; units of length 0 have none. */
  function edges(layer, t, definition, cutoff) {
    const found = [];
    const scale = layer.scale[definition];
    for (let i = 0; i < layer.units; i += 1) {
      if (!layer.norm(t, i)) continue;
      for (let j = i + 1; j < layer.units; j += 1) {
        if (!layer.norm(t, j)) continue;
        const x = layer.cosine(t, i, j);
        const a = weight(x, scale, definition);
        if (a >= cutoff) found.push({ i, j, a, x });
      }
    }
    return found.sort((one, two) => one.a - two.a);
  }

  /** How many components the graph has, and how many units the largest of them. */
  function components(units, joined) {
    const above = Array.from({ length: units }, (_, unit) => unit);
    const root = (unit) => {
      while (above[unit] !== unit) unit = above[unit] = above[above[unit]];
      return unit;
    };
    for (const { i, j } of joined) above[root(i)] = root(j);
    const sizes = new Map();
    for (let unit = 0; unit < units; unit += 1) sizes.set(root(unit), (sizes.get(root(unit)) ?? 0) + 1);
    return { count: sizes.size, largest: Math.max(...sizes.values()) };
  }

  /**
   * Positions of the units in [-1, 1]^2 at any frame, by forces: all push each other apart by k^2 / r,
   * edges pull by 3 A r over the mean number of edges of a unit, and all are drawn to the middle by
   * 1.2 r. The first frame begins on a spiral, each later one where the one before ended: so the same
   * film always lies the same way.
   */
  function layout(layer, definition, cutoff, spread) {
    const n = layer.units;
    const push2 = (1.3 * spread ** 2) / n;
    const frames = [];
    const rounds = Math.max(4, Math.min(40, Math.round(4e5 / n ** 2)));

    function start() {
      const places = new Float64Array(2 * n);
      for (let unit = 0; unit < n; unit += 1) { // by the golden angle: even, and no two in one place
        const turn = unit * 2.399963229728653;
        const far = 0.8 * Math.sqrt((unit + 0.5) / n);
        places[2 * unit] = far * Math.cos(turn);
        places[2 * unit + 1] = far * Math.sin(turn);
      }
      return places;
    }

    function settle(places, joined, count, most) {
      const push = new Float64Array(2 * n);
      const pull = 3 / (1 + (2 * joined.length) / n);
      const apart = (i, j, force, x, y) => {
        push[2 * i] += force * x;
        push[2 * i + 1] += force * y;
        push[2 * j] -= force * x;
        push[2 * j + 1] -= force * y;
      };
      for (let round = 0; round < count; round += 1) {
        for (let c = 0; c < 2 * n; c += 1) push[c] = -1.2 * places[c];
        for (let i = 0; i < n; i += 1) {
          for (let j = i + 1; j < n; j += 1) {
            const x = places[2 * i] - places[2 * j];
            const y = places[2 * i + 1] - places[2 * j + 1];
            apart(i, j, push2 / (x * x + y * y + 1e-5), x, y);
          }
        }
        for (const { i, j, a } of joined) apart(i, j, -pull * a, places[2 * i] - places[2 * j], places[2 * i + 1] - places[2 * j + 1]);
        const far = most * (1 - 0.9 * (round / count));
        for (let unit = 0; unit < n; unit += 1) {
          const size = 0.1 * Math.hypot(push[2 * unit], push[2 * unit + 1]);
          const step = 0.1 * (size > far ? far / size : 1);
          for (const c of [2 * unit, 2 * unit + 1]) places[c] = Math.max(-1, Math.min(1, places[c] + step * push[c]));
        }
      }
    }

    return (t) => {
      while (frames.length <= t) {
        const at = frames.length;
        const places = at ? Float64Array.from(frames[at - 1]) : start();
        settle(places, edges(layer, at, definition, cutoff), at ? rounds : 6 * rounds, at ? 0.03 : 0.2);
        frames.push(places);
      }
      return frames[t];
    };
  }

  Object.assign(window.secateurFilms, { weight, cosineAt, edges, components, layout });
})();
