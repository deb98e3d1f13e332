"use strict";
(() => {
  const byId = (name) => document.getElementById(name);
  const root = document.documentElement;
  const listeners = [];

  // Light or dark: as the system has it, until the button is pressed.
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const theme = byId("theme");
  const themeChanged = () => {
    theme.setAttribute("aria-pressed", String(isDark()));
    listeners.forEach((listener) => listener());
  };
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    themeChanged();
  });
  system.addEventListener("change", themeChanged);
  themeChanged();

  const source = byId("surface");
  if (!source) return;
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const fault = (words) => {
    byId("viewer-fault").textContent = words;
    byId("viewer-fault").hidden = false;
    byId("scene").hidden = true;
  };

  const bytesOf = async (text) => {
    const packed = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  // A surface at a level by naive surface nets (Gibson 1998): a vertex in each cell that it
  // crosses, at the mean of the crossings of the cell's edges; a quadrangle around each such edge.
  const net = (map, level) => {
    const [nz, ny, nx] = map.shape;
    const values = map.values;
    const steps = [1, nx, nx * ny];
    const corners = [];
    for (let k = 0; k < 8; k++) {
      corners.push((k & 1) + ((k >> 1) & 1) * nx + ((k >> 2) & 1) * nx * ny);
    }
    const edges = [];
    for (let k = 0; k < 8; k++) {
      for (let axis = 0; axis < 3; axis++) if (!(k & (1 << axis))) edges.push([k, k | (1 << axis)]);
    }
    const vertexOf = new Int32Array(values.length).fill(-1);
    const vertices = [];
    const faces = [];
    for (let z = 0; z < nz - 1; z++) for (let y = 0; y < ny - 1; y++) {
      for (let x = 0; x < nx - 1; x++) {
        const here = (z * ny + y) * nx + x;
        let above = 0;
        for (let k = 0; k < 8; k++) if (values[here + corners[k]] > level) above |= 1 << k;
        if (above === 0 || above === 255) continue;
        let count = 0, px = 0, py = 0, pz = 0;
        for (const [a, b] of edges) {
          if (((above >> a) & 1) === ((above >> b) & 1)) continue;
          const va = values[here + corners[a]];
          const vb = values[here + corners[b]];
          const t = (level - va) / (vb - va);
          px += (a & 1) + t * ((b & 1) - (a & 1));
          py += ((a >> 1) & 1) + t * (((b >> 1) & 1) - ((a >> 1) & 1));
          pz += ((a >> 2) & 1) + t * (((b >> 2) & 1) - ((a >> 2) & 1));
          count++;
        }
        vertexOf[here] = vertices.length;
        vertices.push({
          x: map.corner[0] + map.step[0] * (x + px / count),
          y: map.corner[1] + map.step[1] * (y + py / count),
          z: map.corner[2] + map.step[2] * (z + pz / count),
        });
        for (let axis = 0; axis < 3; axis++) {
          const inside = above & 1;
          if (inside === ((above >> (1 << axis)) & 1)) continue;
          const second = steps[(axis + 1) % 3];
          const third = steps[(axis + 2) % 3];
          const place = [x, y, z];
          if (!place[(axis + 1) % 3] || !place[(axis + 2) % 3]) continue;
          const a = here, b = here - second, c = here - second - third, d = here - third;
          const [i, j, k, l] = [a, b, c, d].map((cell) => vertexOf[cell]);
          if (inside) faces.push(i, j, k, i, k, l);
          else faces.push(i, k, j, i, l, k);
        }
      }
    }
    return { vertices, faces, normals: normalsOf(vertices, faces) };
  };

  // The mean of the normals of the triangles at each vertex, weighted by their areas.
  const normalsOf = (vertices, faces) => {
    const normals = vertices.map(() => ({ x: 0, y: 0, z: 0 }));
    for (let f = 0; f < faces.length; f += 3) {
      const [a, b, c] = [vertices[faces[f]], vertices[faces[f + 1]], vertices[faces[f + 2]]];
      const ux = b.x - a.x, uy = b.y - a.y, uz = b.z - a.z;
      const vx = c.x - a.x, vy = c.y - a.y, vz = c.z - a.z;
      const n = { x: uy * vz - uz * vy, y: uz * vx - ux * vz, z: ux * vy - uy * vx };
      for (let k = 0; k < 3; k++) {
        const own = normals[faces[f + k]];
        own.x += n.x; own.y += n.y; own.z += n.z;
      }
    }
    for (const n of normals) {
      const length = Math.hypot(n.x, n.y, n.z) || 1;
      n.x /= length; n.y /= length; n.z /= length;
    }
    return normals;
  };

  const start = async () => {
    if (typeof DecompressionStream === "undefined") {
      fault("This browser cannot unpack the map; a newer one can.");
      return;
    }
    const probe = document.createElement("canvas");
    if (!(probe.getContext("webgl2") || probe.getContext("webgl"))) {
      fault("This browser shows no 3-D graphics (WebGL); open map.mrc in ChimeraX instead.");
      return;
    }
    const code = new TextDecoder().decode(await bytesOf(byId("library").textContent));
    const script = document.createElement("script");
    script.textContent = code;
    document.head.append(script);

    const surface = JSON.parse(source.textContent);
    const maps = [];
    for (const one of surface.maps) {
      const bytes = await bytesOf(one.data);
      maps.push({ ...one, values: Float32Array.from(bytes, (q) => (q * one.high) / 255) });
    }
    const high = maps[0].high;
    const scene = byId("scene");
    const view = $3Dmol.createViewer(scene, { backgroundColor: colour("--scene") });
    view.setProjection("orthographic");
    view.enableFog(false);
    const canvas = scene.querySelector("canvas");
    canvas.setAttribute("aria-hidden", "true");

    const level = byId("level");
    const state = byId("state");
    const least = 0.02;
    const levelNow = () => high * (least + ((0.99 - least) * level.value) / 1000);
    level.value = String(Math.round((1000 * (surface.level / high - least)) / (0.99 - least)));
    const known = new Map(); // surfaces that were made at this level, by the map's number
    let shape = null;
    const show = () => {
      const number = state ? Number(state.value) : 0;
      if (!known.has(number)) known.set(number, net(maps[number], levelNow()));
      const made = known.get(number);
      if (shape) view.removeShape(shape);
      shape = null;
      if (made.faces.length) {
        shape = view.addCustom({
          vertexArr: made.vertices, faceArr: made.faces, normalArr: made.normals,
          color: colour("--surface"),
        });
      }
      view.render();
      tell(number);
    };
    const tell = (number) => {
      const map = maps[number];
      const voxel = map.step[0] * map.step[1] * map.step[2];
      let above = 0;
      for (const value of map.values) if (value > levelNow()) above++;
      const volume = above * voxel;
      const mass = (0.81 * volume) / 1000; // of protein: 0.81 Da in a cubic ångström
      const words = `${levelNow().toPrecision(3)}: ${(volume / 1000).toPrecision(3)} nm³, room for ${mass.toPrecision(2)} kDa of protein`;
      byId("level-words").textContent = words;
      level.setAttribute("aria-valuetext", words);
      if (!state) return;
      const place = `${number + 1} of ${maps.length}: ${surface.names[number]}`;
      byId("state-words").textContent = place;
      state.setAttribute("aria-valuetext", place);
    };
    // The middle of what is above the first level, in all maps, and how far it reaches.
    const bounds = () => {
      const low = [Infinity, Infinity, Infinity];
      const far = [-Infinity, -Infinity, -Infinity];
      for (const map of maps) {
        const [nz, ny, nx] = map.shape;
        let here = 0;
        for (let z = 0; z < nz; z++) for (let y = 0; y < ny; y++) for (let x = 0; x < nx; x++) {
          if (!(map.values[here++] > levelNow())) continue;
          [x, y, z].forEach((place, axis) => {
            const at = map.corner[axis] + map.step[axis] * place;
            low[axis] = Math.min(low[axis], at);
            far[axis] = Math.max(far[axis], at);
          });
        }
      }
      const middle = low.map((one, axis) => (one + far[axis]) / 2);
      const reach = 0.5 * Math.hypot(...low.map((one, axis) => far[axis] - one));
      return Number.isFinite(reach) && reach > 0 ? { middle, reach } : { middle: [0, 0, 0], reach: 50 };
    };
    const { middle, reach } = bounds();
    const cameraDistance = 150; // of 3Dmol.js, whose field of view is 20 degrees
    const away = cameraDistance - (0.95 * reach) / Math.tan(Math.PI / 18);
    view.setView([...middle.map((one) => -one), away, 0, 0, 0, 1]);
    view.setSlab(-2 * reach, 2 * reach);
    view.rotate(-65, "x");
    view.rotate(25, "y");
    show();
    const first = view.getView();

    level.addEventListener("input", () => { known.clear(); show(); });
    byId("reset").addEventListener("click", () => { view.setView(first); view.render(); });
    listeners.push(() => { view.setBackgroundColor(colour("--scene")); show(); });

    const every = (button, milliseconds, action) => {
      let timer = null;
      button.addEventListener("click", () => {
        if (timer === null) timer = setInterval(action, milliseconds);
        else { clearInterval(timer); timer = null; }
        button.setAttribute("aria-pressed", String(timer !== null));
      });
    };
    every(byId("turn"), 40, () => { view.rotate(1.2, "vy"); view.render(); });
    if (state) {
      let direction = 1;
      state.addEventListener("input", show);
      every(byId("play"), 220, () => {
        const next = Number(state.value) + direction;
        if (next < 0 || next > maps.length - 1) direction = -direction;
        state.value = String(Number(state.value) + direction);
        show();
      });
    }
    const keys = {
      ArrowLeft: () => view.rotate(-8, "vy"), ArrowRight: () => view.rotate(8, "vy"),
      ArrowUp: () => view.rotate(-8, "vx"), ArrowDown: () => view.rotate(8, "vx"),
      "+": () => view.zoom(1.15), "=": () => view.zoom(1.15), "-": () => view.zoom(1 / 1.15),
      0: () => view.setView(first),
    };
    scene.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
      view.render();
    });
    window.addEventListener("beforeprint", () => { byId("still").src = view.pngURI(); });
    root.dataset.ready = "true";
  };
  start().catch((error) => { fault(`The map cannot be shown: ${error.message}`); });
})();
