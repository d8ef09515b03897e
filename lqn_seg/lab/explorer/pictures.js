"use strict";
// The image, the masks over it, and the class at a place in all of them.

async function picture(url) { return createImageBitmap(await (await ask(url)).blob()); }
function viewOf(name) {
  if (views.has(name)) return views.get(name);
  const view = {name, canvas: make("canvas"), title: make("b"), note: make("span")};
  view.canvas.setAttribute("role", "img");
  view.under = make("span");
  view.save = make("a", {textContent: "Labels", title: "Save the classes of all pixels as PNG"});
  view.figure = make("figure", {}, make("figcaption", {}, view.title, view.note), view.canvas,
    make("div", {className: "foot"}, view.under, view.save));
  view.figure.dataset.map = name;
  views.set(name, view);
  wire(view.canvas);
  new ResizeObserver(() => draw(view)).observe(view.canvas);
  return clear(view);
}
function clear(view) {
  view.paint = view.ids = null;
  view.note.textContent = "";
  link(view.save, null);
  return view;
}
function titleOf(name) {
  if (name === "step") return "LQN so far";
  if (EXTRA.includes(name)) return name === "image" ? "Image" : "Ground truth";
  return capital(options.methods.find(method => method.name === name).title);
}
function arrange() {  // a place for every picture, before it is there
  const hasTruth = status.maps ? status.maps.truth : wanted.scene !== undefined;
  $("masks").classList.toggle("unscored", !hasTruth);
  const names = ["image", ...(hasTruth ? ["truth"] : []), ...chosen()];
  const figures = names.map(name => viewOf(name).figure);
  if (figures.some((figure, k) => $("masks").children[k] !== figure) || $("masks").children.length > figures.length)
    $("masks").replaceChildren(...figures);
  if (!views.has("step")) $("step-row").append(viewOf("step").figure);
  for (const view of views.values()) {
    view.title.textContent = view.title.title = titleOf(view.name);
    view.canvas.setAttribute("aria-label", titleOf(view.name));
    draw(view);
  }
  legend(); point(pointer);
}
async function load(view, name, map) {
  const mine = job, url = `api/job/${mine}/map/${name}`;
  const [paint, ids] = await Promise.all([
    picture(`${url}.png`), ask(`${url}.ids`).then(answer => answer.arrayBuffer())]);
  if (mine !== job) return;
  view.paint = paint; view.ids = new Int32Array(ids);
  view.segments = new Map(map.segments.map(segment => [segment.id, segment]));
  link(view.save, `api/job/${mine}/labels/${name}.png`, `labels_${status.file}_${name}.png`);
  view.save.setAttribute("aria-label", `Save the class labels of ${titleOf(view.name)} as PNG`);
  draw(view); point(pointer);
}
function score(now, view) {
  const map = now.maps[view.name];
  if (map && !missing(map.score)) view.note.textContent = `${now.metric} ${fixed(map.score, 1)}`;
}
function part() {  // of the image that is shown, in its pixels
  const [h, w] = status.size, width = w / seen.zoom, height = h / seen.zoom;
  const within = (middle, length, all) => Math.min(Math.max(middle * all - length / 2, 0), all - length);
  return {x: within(seen.x, width, w), y: within(seen.y, height, h), w: width, h: height};
}
function draw(view) {
  const {canvas} = view, dots = devicePixelRatio || 1;
  view.figure.classList.toggle("pending", view.name !== "image" && !view.paint || !photo);
  const [width, height] = [canvas.clientWidth, canvas.clientHeight].map(x => Math.max(1, Math.round(x * dots)));
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const brush = canvas.getContext("2d");
  brush.clearRect(0, 0, width, height);
  if (!photo) return;
  const {x, y, w, h} = part();
  const lay = (image, opacity) => {
    const k = image.width / status.size[1];
    brush.imageSmoothingEnabled = width < k * w;  // grown pixels stay squares
    brush.imageSmoothingQuality = "high";
    brush.globalAlpha = opacity;
    brush.drawImage(image, k * x, k * y, k * w, k * h, 0, 0, width, height);
  };
  lay(photo, 1);
  if (view.paint) lay(view.paint, $("opacity").value / 100);
  brush.globalAlpha = 1;
  if (pointer) cross(brush, (pointer.x - x) / w * width, (pointer.y - y) / h * height, 7 * dots, dots);
}
function cross(brush, x, y, r, dots) {
  for (const [color, width] of [["#fff", 4], ["#1c1e24", 2]]) {
    brush.strokeStyle = color; brush.lineWidth = width * dots / 1.6;
    brush.beginPath();
    brush.moveTo(x - r, y); brush.lineTo(x + r, y); brush.moveTo(x, y - r); brush.lineTo(x, y + r);
    brush.stroke();
  }
}
const drawAll = () => views.forEach(draw);
function setZoom({zoom, x, y}) {
  zoom = Math.min(Math.max(zoom, 1), 32);
  const half = 0.5 / zoom, within = v => Math.min(Math.max(v, half), 1 - half);
  seen = {zoom, x: within(x), y: within(y)};
  $("zoom-is").textContent = `Zoom ${zoom.toFixed(1)} ×`;
  document.body.classList.toggle("zoomed", zoom > 1);
  drawAll(); legend();
}
function zoomAt(place, factor) {  // which stays where it is
  const [h, w] = status.size, zoom = Math.min(Math.max(seen.zoom * factor, 1), 32), k = seen.zoom / zoom;
  const from = part(), middle = [(from.x + from.w / 2) / w, (from.y + from.h / 2) / h];
  const [x, y] = [place.x / w, place.y / h].map((p, n) => p + (middle[n] - p) * k);
  setZoom({zoom, x, y});
}
function place(canvas, event) {  // in pixels of the image
  const box = canvas.getBoundingClientRect(), {x, y, w, h} = part();
  return {x: x + (event.clientX - box.left) / box.width * w, y: y + (event.clientY - box.top) / box.height * h};
}
function wire(canvas) {
  const held = new Map();  // by pointer: the last event
  const when = work => event => { if (status.size) work(event); };
  canvas.onpointerdown = when(event => {
    held.set(event.pointerId, event);
    canvas.setPointerCapture(event.pointerId);
    point(place(canvas, event));
  });
  canvas.onpointermove = when(event => {
    const before = held.get(event.pointerId);
    if (before) {
      held.set(event.pointerId, event);
      const other = [...held.values()].find(touch => touch.pointerId !== event.pointerId);
      const apart = touch => Math.hypot(touch.clientX - other.clientX, touch.clientY - other.clientY);
      if (other) return zoomAt(place(canvas, event), apart(event) / Math.max(apart(before), 1));
      const box = canvas.getBoundingClientRect();
      const x = seen.x - (event.clientX - before.clientX) / box.width / seen.zoom;
      const y = seen.y - (event.clientY - before.clientY) / box.height / seen.zoom;
      if (seen.zoom > 1) setZoom({zoom: seen.zoom, x, y});
    }
    point(place(canvas, event));
  });
  canvas.onpointerup = canvas.onpointercancel = event => held.delete(event.pointerId);
  canvas.onpointerleave = event => { if (event.pointerType === "mouse") point(null); };
  canvas.ondblclick = when(event => zoomAt(place(canvas, event), seen.zoom > 1 ? 0 : 3));
  canvas.onwheel = when(event => {
    if (!event.ctrlKey && !event.metaKey) return;  // the page scrolls
    event.preventDefault();
    zoomAt(place(canvas, event), Math.exp(-event.deltaY / 400));
  });
}
function classAt(view, {x, y}) {
  const [h, w] = status.size, inside = (v, all) => Math.min(Math.max(Math.floor(v), 0), all - 1);
  return view.segments.get(view.ids[inside(y, h) * w + inside(x, w)]);
}
const pointed = () => pointer || {x: part().x + part().w / 2, y: part().y + part().h / 2};
const swatch = color => {
  const box = make("i", {className: "swatch"});
  box.style.background = `rgb(${color.join()})`;
  return box;
};
function point(at) {  // says the class at a place below every picture
  pointer = at;
  const words = [];
  for (const view of views.values()) {
    const found = at && view.ids && classAt(view, at), name = found ? found.name : "no segment";
    view.under.replaceChildren(...(at && view.ids ? [swatch(found ? found.color : [90, 90, 98]), name] : []));
    view.under.title = at && view.ids ? name : "";
    if (at && view.ids) words.push(`${titleOf(view.name)}: ${name}`);
  }
  drawAll();
  return words.join(", ");
}
function legend() {  // of the classes in the part that is shown of the pictures that are shown
  const names = new Set();
  for (const view of views.values()) {
    if (!view.ids || !view.figure.parentNode) continue;
    const {x, y, w, h} = part(), ids = new Set(), right = Math.ceil(x + w), below = Math.ceil(y + h);
    for (let row = Math.floor(y); row < below; row++)
      for (let at = row * status.size[1] + Math.floor(x), end = at - Math.floor(x) + right; at < end; at++)
        ids.add(view.ids[at]);
    for (const id of ids) names.add(view.segments.get(id)?.name ?? "no segment");
  }
  const entries = (status.legend || []).filter(entry => names.has(entry.name));
  $("legend").replaceChildren(...entries.map(({name, color}) => make("li", {}, swatch(color), name)));
}
$("masks").onkeydown = event => {
  if (!photo || event.ctrlKey || event.metaKey || event.altKey) return;
  const now = part(), at = pointed(), step = now.w / 40;
  const by = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  const factor = {"+": 1.5, "=": 1.5, "-": 1 / 1.5, "0": 0}[event.key];
  if (by) {
    const inside = (v, from, length) => Math.min(Math.max(v, from), from + length - 1e-3);
    const next = {x: inside(at.x + by[0] * step, now.x, now.w), y: inside(at.y + by[1] * step, now.y, now.h)};
    $("spoken").textContent = point(next);
  } else if (factor !== undefined) zoomAt(at, factor);
  else return;
  event.preventDefault();
};
