/* Films as report/films.py packs them: bytes to numbers, and what is asked of a frame. */
window.secateurFilms = (() => {
  "use strict";
  const STEPS = { direction: 32767, cosine: 1000, "gram cosine": 127 };
  const size = (shape) => shape.reduce((product, part) => product * part, 1);

  /** The numbers of one block, frame after frame; `cursor.at` moves behind it. */
  function unpack(block, bytes, cursor) {
    const count = size(block.shape);
    const each = count / block.shape[0];
    const wide = block.kind !== "gram cosine";
    const [low, high] = [cursor.at, cursor.at + count];
    cursor.at += wide ? 2 * count : count;
    const numbers = new Float32Array(count);
    const sum = new Int32Array(each); // frames hold differences, modulo their bits
    for (let k = 0; k < count; k += 1) {
      const place = k % each;
      const change = wide ? bytes[low + k] + 256 * bytes[high + k] : bytes[low + k];
      sum[place] = wide ? (sum[place] + change) & 65535 : (sum[place] + change) & 255;
      const q = sum[place];
      if (block.kind === "length") numbers[k] = q ? block.low * Math.exp(((q - 1) / 65534) * block.span) : 0;
      else numbers[k] = (wide ? (q << 16) >> 16 : (q << 24) >> 24) / STEPS[block.kind];
    }
    return numbers;
  }

  /** Place of the pair i, j (i not j) of n in a triangle above the diagonal. */
  function pair(i, j, n) {
    const [a, b] = i < j ? [i, j] : [j, i];
    return (a * (2 * n - a - 1)) / 2 + b - a - 1;
  }

  function layerOf(told, read) {
    const n = told.units;
    const d = told.coordinates;
    const norms = read(told.blocks.norms);
    const directions = read(told.blocks.directions);
    const packed = told.blocks.cosines ? read(told.blocks.cosines) : null;
    const pairs = (n * (n - 1)) / 2;
    const norm = (t, i) => norms[t * n + i];
    /** Part c of the direction of unit i: of length 1 in the plane, shorter in a projection. */
    const along = (t, i, c) => directions[(t * n + i) * d + c];
    function cosine(t, i, j) {
      if (i === j) return 1;
      if (packed) return packed[t * pairs + pair(i, j, n)];
      return along(t, i, 0) * along(t, j, 0) + along(t, i, 1) * along(t, j, 1);
    }
    return { ...told, norm, along, cosine, longest: norms.reduce((a, b) => Math.max(a, b), 0) };
  }

  function gramOf(told, read, n) {
    const roots = read(told.norms);
    const cosines = read(told.cosines);
    const pairs = (n * (n - 1)) / 2;
    const root = (t, i) => roots[t * n + i];
    const cosine = (t, i, j) => (i === j ? Number(root(t, i) > 0) : cosines[t * pairs + pair(i, j, n)]);
    const entry = (t, i, j) => cosine(t, i, j) * root(t, i) * root(t, j);
    /** The largest entry of a frame stands on the diagonal. */
    const top = (t) => {
      let most = 0;
      for (let i = 0; i < n; i += 1) most = Math.max(most, root(t, i) ** 2);
      return most;
    };
    return { cosine, entry, top };
  }

  /** A film, decoded; its blocks stand in the bytes in the order in which they were told. */
  async function load(film, inflate) {
    const bytes = new Uint8Array(await (await inflate(film.packed, "deflate")).arrayBuffer());
    const cursor = { at: 0 };
    const read = (block) => unpack(block, bytes, cursor);
    const layers = {};
    const grams = {};
    for (const [name, told] of Object.entries(film.layers)) layers[name] = layerOf(told, read);
    for (const [name, told] of Object.entries(film.grams)) {
      const networks = {};
      for (const [network, blocks] of Object.entries(told.blocks)) networks[network] = gramOf(blocks, read, told.examples);
      grams[name] = { ...told, networks };
    }
    return { ...film, frames: film.steps.length, layers, grams };
  }

  return { load };
})();
