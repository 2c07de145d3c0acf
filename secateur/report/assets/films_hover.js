/* What the pointer is told: of a unit, lit in both of its panels, and of an entry of a Gram matrix. */
(() => {
  "use strict";
  const { short } = window.secateurFilms;

  function hover({ find, state, cache, show, tip }) {
    function light(unit) {
      if (unit === state.lit) return;
      state.lit = unit;
      show();
    }

    for (const [name, key] of [["vectors", "tipPlaces"], ["graph", "nodePlaces"]]) {
      const canvas = find(name);
      canvas.addEventListener("pointermove", (event) => {
        const box = canvas.getBoundingClientRect();
        const [x, y] = [event.clientX - box.left, event.clientY - box.top];
        let best = -1;
        let least = Infinity;
        for (const [unit, [a, b, radius = 4]] of (cache[key] ?? []).entries()) {
          const far = Math.hypot(x - a, y - b) - radius;
          if (far < 8 && far < least) [best, least] = [unit, far];
        }
        light(best);
        tip(event, best < 0 ? null : tell(best));
      });
      canvas.addEventListener("pointerleave", () => {
        tip(null);
        light(-1);
      });
    }

    function tell(unit) {
      const layer = state.film.layers[state.layer];
      const t = Math.round(state.at);
      const said = { title: `Unit ${unit}`, Norm: short(layer.norm(t, unit)) };
      if (layer.signs) said.Side = layer.signs[unit] < 0 ? "against" : "for";
      if (layer.coordinates === 2 && layer.norm(t, unit)) said.Angle = `${((Math.atan2(layer.along(t, unit, 1), layer.along(t, unit, 0)) * 180) / Math.PI).toFixed(1).replace("-", "−")}°`;
      const joined = cache[`edges ${t}`]?.filter(({ i, j }) => i === unit || j === unit).length;
      if (joined !== undefined) said.Edges = String(joined);
      return said;
    }

    for (const side of ["left", "right"]) {
      const canvas = find(`gram-${side}`);
      canvas.addEventListener("pointermove", (event) => {
        const { film } = state;
        const grams = film.grams[state.layer];
        const box = canvas.getBoundingClientRect();
        const room = film.labels ? 20 : 0;
        const [j, i] = [event.clientX - box.left, event.clientY - box.top].map((v) => Math.floor(((v - room) / (box.width - room)) * grams.examples));
        if (Math.min(i, j) < 0 || Math.max(i, j) >= grams.examples) return tip(null);
        const matrix = grams.networks[find(side).value];
        const t = Math.round(state.at);
        const of = (k) => (film.labels ? ` (${film.classes[film.labels[k]] ?? film.labels[k]})` : "");
        tip(event, { title: find(side).value, Examples: `${i}${of(i)}, ${j}${of(j)}`, Entry: short(matrix.entry(t, i, j)), Cosine: matrix.cosine(t, i, j).toFixed(2).replace("-", "−") });
      });
      canvas.addEventListener("pointerleave", () => tip(null));
    }
  }

  Object.assign(window.secateurFilms, { hover });
})();
