// Draws one scene of a file of results on canvases: the map, the 3D scene, the range profiles. No library, no network.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const view = { scene: 0, turn: -0.6, tilt: 0.35, zoom: 1 };
const by = (name) => document.getElementById(name);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const sourceColour = (index) => colour(["c2", "c0", "c3", "c4", "c5", "c6"][index % 6]);

// A canvas as sharp as the screen; the units of what is drawn are those of the page.
function prepared(canvas, ratio) {
  const width = canvas.clientWidth, height = Math.round(width * ratio), scale = devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "12px system-ui, sans-serif";
  pen.lineWidth = 1;
  return { pen, width, height };
}

// At most `most` round numbers from low to high.
function ticks(low, high, most) {
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= raw);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + 1e-9 * step; value += step)
    found.push(Math.abs(value) < step / 1e6 ? 0 : value);
  return found;
}

const plain = (value) => String(+value.toPrecision(6)).replace("-", "\u2212");

function text(pen, words, x, y, align, ink) {
  pen.textAlign = align;
  pen.fillStyle = ink || colour("soft");
  pen.fillText(words, x, y);
}

// A label with a rim in the colour of the ground; moved down until it lies on no cross and no other label.
function label(pen, words, x, y, width, taken) {
  const long = pen.measureText(words).width, left = x + 10 + long > width ? x - 10 - long : x + 10;
  let top = y;
  while (taken.some((other) => Math.abs(other.top - top) < 14 && other.left < left + long && left < other.right)) top += 14;
  taken.push({ top, left, right: left + long });
  pen.textAlign = "left";
  pen.lineJoin = "round";
  pen.lineWidth = 3;
  pen.strokeStyle = colour("card");
  pen.strokeText(words, left, top + 4);
  pen.lineWidth = 1;
  text(pen, words, left, top + 4, "left", colour("ink"));
}

function cross(pen, x, y, ink, taken) {
  taken.push({ top: y, left: x - 6, right: x + 6 });
  for (const [width, paint] of [[5, colour("card")], [2, ink]]) {
    pen.lineWidth = width;
    pen.strokeStyle = paint;
    pen.beginPath();
    pen.moveTo(x - 5, y - 5); pen.lineTo(x + 5, y + 5);
    pen.moveTo(x - 5, y + 5); pen.lineTo(x + 5, y - 5);
    pen.stroke();
  }
  pen.lineWidth = 1;
}

// From the ground of the page to a strong blue: a map is light where the page is light and dark where it is dark.
function shades() {
  const numbers = (name) => colour(name).match(/\w\w/g).map((pair) => parseInt(pair, 16));
  const ground = numbers("card"), strong = numbers("c0");
  return (share) => ground.map((value, i) => value + (strong[i] - value) * share);
}

function mapFrame(width, height, map) {
  const box = { left: 46, top: 8, right: width - 18, bottom: height - 38 };
  const span = (axis) => [axis[0], axis[axis.length - 1]].map((v, i) => (axis.length > 1 ? v : v + 2 * i - 1));
  const [a0, a1] = span(map.azimuth_deg), [e0, e1] = span(map.elevation_deg);
  return { box, a0, a1, e0, e1,
    x: (azimuth) => box.left + (azimuth - a0) / (a1 - a0) * (box.right - box.left),
    y: (elevation) => box.bottom - (elevation - e0) / (e1 - e0) * (box.bottom - box.top) };
}

function drawMap() {
  const scene = data.scenes[view.scene], map = scene.map;
  by("map").hidden = !map;
  if (!map) return;
  const { pen, width, height } = prepared(by("map-canvas"), 0.56);
  const frame = mapFrame(width, height, map), box = frame.box, shade = shades();
  const columns = map.azimuth_deg.length, rows = map.elevation_deg.length;
  const picture = document.createElement("canvas");
  picture.width = columns; picture.height = rows;
  const image = new ImageData(columns, rows);
  for (let i = 0; i < columns; i++) for (let j = 0; j < rows; j++) {
    const share = Math.max(0, 1 - map.level_db[i][j] / map.floor_db), at = 4 * ((rows - 1 - j) * columns + i);
    image.data.set([...shade(share), 255], at);
  }
  picture.getContext("2d").putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = true;
  pen.drawImage(picture, box.left, box.top, box.right - box.left, box.bottom - box.top);
  pen.strokeStyle = colour("rule");
  pen.strokeRect(box.left, box.top, box.right - box.left, box.bottom - box.top);
  for (const value of ticks(frame.a0, frame.a1, width < 420 ? 5 : 8)) text(pen, `${plain(value)}°`, frame.x(value), box.bottom + 15, "center");
  for (const value of ticks(frame.e0, frame.e1, 5)) text(pen, `${plain(value)}°`, box.left - 6, frame.y(value) + 4, "right");
  text(pen, "azimuth", (box.left + box.right) / 2, box.bottom + 31, "center");
  pen.save();
  pen.translate(11, (box.top + box.bottom) / 2);
  pen.rotate(-Math.PI / 2);
  text(pen, "elevation", 0, 0, "center");
  pen.restore();
  const taken = [];
  scene.sources.forEach((source, i) =>
    cross(pen, frame.x(source.azimuth_deg), frame.y(source.elevation_deg), sourceColour(i), taken));
  scene.sources.forEach((source, i) =>
    label(pen, `${i + 1}: ${source.range}`, frame.x(source.azimuth_deg), frame.y(source.elevation_deg), box.right, taken));
  by("map-ends").textContent = `power relative to the maximum, ${plain(map.floor_db)} dB (as the page) to 0 dB (blue)`;
}

function sayLevel(event) {
  const map = data.scenes[view.scene].map, canvas = by("map-canvas");
  if (!map) return;
  const frame = mapFrame(canvas.clientWidth, canvas.clientHeight, map), box = frame.box;
  const across = (event.offsetX - box.left) / (box.right - box.left), up = (box.bottom - event.offsetY) / (box.bottom - box.top);
  if (across < 0 || across > 1 || up < 0 || up > 1) return;
  const i = Math.round(across * (map.azimuth_deg.length - 1)), j = Math.round(up * (map.elevation_deg.length - 1));
  by("map-ends").textContent = `${plain(map.azimuth_deg[i])}°, ${plain(map.elevation_deg[j])}°: ${plain(map.level_db[i][j])} dB`;
}

// Corners of what is drawn: everything with the floor below it, whose lines are a round number of metres apart.
function bounds(points) {
  const low = [0, 1, 2].map((i) => Math.min(0, ...points.map((p) => p[i])));
  const high = [0, 1, 2].map((i) => Math.max(0, ...points.map((p) => p[i])));
  const step = ticks(0, Math.max(high[0] - low[0], high[2] - low[2], 1e-3), 6)[1];
  for (const i of [0, 2]) {
    low[i] = Math.floor(low[i] / step + 1e-6) * step;
    high[i] = Math.ceil(high[i] / step - 1e-6) * step;
  }
  return { low, high, step };
}

// From (x to the right, y up, z towards the back), turned about the vertical and tilted, to the page.
function projection(width, height, { low, high }) {
  const middle = low.map((value, i) => (value + high[i]) / 2);
  const [ct, st, cp, sp] = [Math.cos(view.turn), Math.sin(view.turn), Math.cos(view.tilt), Math.sin(view.tilt)];
  const turned = (point) => {
    const [x, y, z] = point.map((value, i) => value - middle[i]);
    return [ct * x - st * z, cp * y + sp * (st * x + ct * z)];
  };
  const floor = Math.hypot(high[0] - low[0], high[2] - low[2]), tall = high[1] - low[1];
  const scale = view.zoom * 0.94 * Math.min(width / floor, height / (Math.max(sp, 0.35) * floor + cp * tall));
  return (point) => { const [across, up] = turned(point); return [width / 2 + scale * across, height / 2 - scale * up]; };
}

function drawScene() {
  const scene = data.scenes[view.scene];
  const placed = scene.sources.filter((source) => source.xyz_m);
  by("space").hidden = placed.length === 0;
  if (placed.length === 0) return;
  const { pen, width, height } = prepared(by("space-canvas"), 0.66);
  const elements = data.elements_m || [];
  const room = bounds([...elements, ...placed.map((source) => source.xyz_m)]), at = projection(width, height, room);
  const line = (points, ink, wide, dash) => {
    pen.strokeStyle = ink; pen.lineWidth = wide; pen.setLineDash(dash || []);
    pen.beginPath();
    points.map(at).forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.stroke();
    pen.setLineDash([]);
  };
  const [x0, y0, z0] = room.low, [x1, , z1] = room.high, step = room.step;
  for (let x = x0; x <= x1 + step / 2; x += step) line([[x, y0, z0], [x, y0, z1]], colour("rule"), 1);
  for (let z = z0; z <= z1 + step / 2; z += step) line([[x0, y0, z], [x1, y0, z]], colour("rule"), 1);
  pen.fillStyle = colour("soft");
  for (const element of elements) { const [x, y] = at(element); pen.fillRect(x - 1.2, y - 1.2, 2.4, 2.4); }
  const taken = [];
  placed.forEach((source) => {
    const ink = sourceColour(source.number - 1), [x, y, z] = source.xyz_m;
    line([[x, y0, z], [x, y, z]], ink, 1, [3, 3]);
    pen.globalAlpha = 0.75;
    for (const ring of source.rings_m || []) line(ring, ink, 1.3);
    pen.globalAlpha = 1;
    cross(pen, ...at(source.xyz_m), ink, taken);
  });
  placed.forEach((source) => label(pen, `${source.number}: ${source.range}`, ...at(source.xyz_m), width, taken));
  by("space-ends").textContent = `lines on the floor every ${plain(step)} m; x to the right, z away from the array`;
}

function drawProfiles() {
  const scene = data.scenes[view.scene], profiles = scene.profiles;
  by("profiles").hidden = !profiles;
  if (!profiles) return;
  const { pen, width, height } = prepared(by("profiles-canvas"), innerWidth < 600 ? 0.7 : 0.34);
  const box = { left: 46, top: 10, right: width - 12, bottom: height - 38 };
  const range = profiles.range_m, low = Math.log(range[0]), high = Math.log(range[range.length - 1]);
  const floor = profiles.floor_db;
  const x = (metres) => box.left + (Math.log(metres) - low) / (high - low) * (box.right - box.left);
  const y = (level) => box.bottom - (1 - Math.max(level, floor) / floor) * (box.bottom - box.top);
  pen.strokeStyle = colour("rule");
  for (const level of ticks(floor, 0, 4)) {
    pen.beginPath(); pen.moveTo(box.left, y(level)); pen.lineTo(box.right, y(level)); pen.stroke();
    text(pen, plain(level), box.left - 6, y(level) + 4, "right");
  }
  let last = -Infinity;
  for (let power = -3; power < 6; power++) for (const factor of [1, 2, 5]) {
    const metres = factor * 10 ** power, place = x(metres);
    if (place < box.left || place > box.right || place < last + 42) continue;
    text(pen, `${plain(metres)} m`, place, box.bottom + 15, "center");
    last = place;
  }
  text(pen, "range", (box.left + box.right) / 2, box.bottom + 31, "center");
  text(pen, "dB", 6, box.top + 4, "left");
  profiles.level_db.forEach((levels, i) => {
    const ink = sourceColour(i), found = scene.sources[i].range_m;
    pen.strokeStyle = ink; pen.lineWidth = 2;
    pen.beginPath();
    levels.forEach((level, n) => (n ? pen.lineTo(x(range[n]), y(level)) : pen.moveTo(x(range[n]), y(level))));
    pen.stroke();
    if (found === null || Math.log(found) < low || Math.log(found) > high) return;
    pen.setLineDash([4, 3]); pen.lineWidth = 1.2;
    pen.beginPath(); pen.moveTo(x(found), box.top); pen.lineTo(x(found), box.bottom); pen.stroke();
    pen.setLineDash([]);
  });
}

function draw() {
  document.querySelectorAll("[data-scene]").forEach((part) => { part.hidden = +part.dataset.scene !== view.scene; });
  document.querySelectorAll("td i").forEach((mark) => { mark.style.background = sourceColour(+mark.dataset.source); });
  drawMap();
  drawScene();
  drawProfiles();
}

by("scene-choice")?.addEventListener("change", (event) => { view.scene = +event.target.value; draw(); });
by("map-canvas").addEventListener("pointermove", sayLevel);
const space = by("space-canvas");
space.addEventListener("pointerdown", (event) => space.setPointerCapture(event.pointerId));
space.addEventListener("pointermove", (event) => {
  if (!space.hasPointerCapture(event.pointerId)) return;
  view.turn += event.movementX / 150;
  view.tilt = Math.min(1.5, Math.max(-0.2, view.tilt + event.movementY / 150));
  drawScene();
});
space.addEventListener("wheel", (event) => {
  event.preventDefault();
  view.zoom = Math.min(8, Math.max(0.5, view.zoom * Math.exp(-event.deltaY / 500)));
  drawScene();
}, { passive: false });
space.addEventListener("keydown", (event) => {
  const turned = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key];
  if (!turned) return;
  event.preventDefault();
  view.turn += turned[0];
  view.tilt = Math.min(1.5, Math.max(-0.2, view.tilt + turned[1]));
  drawScene();
});
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
