"use strict";
const $ = id => document.getElementById(id);
const make = (tag, parts = {}, ...inside) => {
  const element = Object.assign(document.createElement(tag), parts);
  element.append(...inside);
  return element;
};
const EXTRA = ["image", "truth"];  // pictures beside those of the methods
const FIELDS = ["corruption", "severity", "teacher", "preset"];
let options = {}, wanted = {}, job = null, status = {};
let turn = 0, starting = Promise.resolve(), polling = null;
let photo = null;  // the image of the job
const views = new Map();  // name -> {name, figure, canvas, ...}, "step" among them
let seen = {zoom: 1, x: 0.5, y: 0.5}, pointer = null;  // the same in every picture

// ---- talking to the server ----------------------------------------------------------------------

async function ask(path, request) {
  const answer = await fetch(path, request);
  if (answer.ok) return answer;
  let words = `the server said ${answer.status}`;
  try { words = (await answer.json()).error; } catch { /* no sentence */ }
  throw new Error(words);
}
const post = async (path, value) =>
  (await ask(path, {method: "POST", body: JSON.stringify(value)})).json();
const say = (words, bad = false) => {
  if ($("message").textContent !== words) $("message").textContent = words;
  $("message").className = bad ? "bad" : "";
};
const safely = work => async (...given) => {  // of a run that was cut short, nothing is said
  const mine = turn;
  try { return await work(...given); } catch (error) { if (mine === turn) say(error.message, true); }
};
const capital = words => words[0].toUpperCase() + words.slice(1);
const missing = x => x === null || x === undefined;
const fixed = (x, digits) =>
  missing(x) ? "–" : +x.toFixed(digits) === 0 ? (0).toFixed(digits) : x.toFixed(digits);

const begin = safely(async () => {
  options = await (await ask("api/options")).json();
  const {start} = options;
  for (const [id, names] of [["corruption", options.corruptions], ["teacher", options.teachers],
    ["preset", options.presets]])
    for (const name of names) $(id).add(new Option(name.replaceAll("_", " "), name));
  $("preset").value = options.preset;
  $("corruption").value = start.corruption;
  $("severity").value = start.severity;
  showSeverity();
  for (const {name, title} of options.methods) {
    const box = make("input", {type: "checkbox", value: name, checked: start.methods.includes(name)});
    box.onchange = safely(choose);
    const shown = box.checked ? $("methods") : $("more");
    shown.append(make("label", {}, box, capital(title)));
  }
  const names = Object.entries(options.scenes);
  for (const [scene, title] of names) {
    const radio = make("input", {type: "radio", name: "scene", className: "hidden"});
    const image = make("img", {src: `api/scene/${encodeURIComponent(scene)}.png`, alt: title, title});
    radio.onchange = () => { take({scene}); run(); };
    $("scenes").append(make("label", {className: "pick"}, radio, image));
  }
  if (!names.length) return say("open or drop an image to begin");
  $("scenes").querySelector("input").checked = true;
  take({scene: names[0][0]});
  run();
});
function take(what, name = "") {
  wanted = what;
  $("drop").textContent = name || "Open or drop an image";
  $("drop").classList.toggle("on", !!name);
  for (const radio of $("scenes").querySelectorAll("input")) if (name) radio.checked = false;
}
const upload = safely(async file => {
  if (!file) return;
  say(`reading ${file.name} ...`);
  if (file.size > 20 * 2 ** 20) throw new Error("the file is too large: more than 20 MB");
  const headers = {"X-Name": encodeURIComponent(file.name)};
  take(await (await ask("api/upload", {method: "POST", body: file, headers})).json(), file.name);
  run();
});
const chosen = () => [...document.querySelectorAll(".chips :checked")].map(box => box.value);

function run() {  // one start at a time; of several that wait, the last
  const mine = ++turn;
  starting = starting.then(() => mine === turn ? start() : null);
}
const start = safely(async () => {
  const request = {...wanted, methods: chosen(), instead: job};
  for (const id of FIELDS) request[id] = id === "severity" ? +$(id).value : $(id).value;
  say("starting ...");
  job = (await post("api/run", request)).job;
  status = {}; photo = null; pointer = null;
  for (const view of views.values()) clear(view);
  setZoom({zoom: 1, x: 0.5, y: 0.5});
  arrange();
  for (const id of ["layer", "layer-play", "step", "step-play"]) $(id).disabled = true;
  for (const id of ["save-panel", "save-json"]) link($(id), null);
  $("layer-is").textContent = "Layer"; $("step-is").textContent = "Step";
  $("layer-error").textContent = "not fitted yet"; $("step-error").textContent = "not made yet";
  $("warning").textContent = $("verdict").textContent = "";
  for (const id of ["depth-curve", "step-curve", "score-curve"]) $(id).replaceChildren();
  poll();
});
const choose = async () => {  // methods may be added to a job that runs, or has ended
  arrange();
  const mine = job, absent = chosen().filter(name => !status.maps?.[name]);
  if (!mine) return;
  for (const method of absent) await post("api/add", {job: mine, method});
  if (absent.length) poll();
  else if (status.maps) await show(status, mine);
};
const poll = safely(async () => {
  const mine = job;
  if (polling === mine) return;
  polling = mine;
  try {
    while (mine === job) {
      const now = await (await ask(`api/job/${mine}`)).json();
      if (mine !== job) return;
      await show(now, mine);
      if (now.done && !chosen().some(name => !now.maps[name] && !now.error)) return;
      await new Promise(next => setTimeout(next, 150));
    }
  } finally { if (polling === mine) polling = null; }
});

// ---- what a job says ----------------------------------------------------------------------------

async function show(now, mine) {
  status = now;
  document.documentElement.style.setProperty("--ratio", now.size[1] / now.size[0]);
  $("progress").value = now.progress;
  say(now.error || progressWords(now), !!now.error);
  if (!photo) {
    const image = await picture(`api/job/${mine}/image.png`);
    if (mine !== job) return;
    photo = image;
    arrange();
  }
  for (const name of ["truth", ...chosen()]) {
    if (now.maps[name] && !views.get(name)?.ids) await load(views.get(name), name, now.maps[name]);
    if (mine !== job) return;  // another has begun while the pictures came
  }
  for (const view of views.values()) score(now, view);
  link($("save-panel"), allMade() ? `api/job/${mine}/panel.png` : null, `panel_${now.file}.png`);
  link($("save-json"), allMade() ? `api/job/${mine}` : null, `result_${now.file}.json`);
  legend(); numbers(now);
  $("verdict").textContent = verdict(now);
  $("known").textContent = `${capital(now.known)}.`;
  const unlike = now.unlike && `${now.unlike}. Its masks and class names mean little here.`;
  $("warning").textContent = [unlike, ...now.warnings].filter(Boolean).join(" ");
  if (now.depth && $("layer").disabled) {
    $("layer").max = now.depth.layers;
    $("layer").value = now.depth.layers;
    $("layer").disabled = $("layer-play").disabled = false;
    askLayer();
  }
  const made = now.steps.made.length, slider = $("step");
  if (made && (slider.disabled || made - 1 !== +slider.max)) {
    const follow = slider.disabled || slider.value === slider.max;
    slider.max = made - 1;
    if (follow) slider.value = made - 1;
    slider.disabled = false;
    showStep();
  }
  $("step-play").disabled = !made || !now.done;
}
const allMade = () => status.maps && chosen().every(name => status.maps[name]);
function progressWords(now) {
  if (now.done) return `Done: ${now.image}.`;
  const left = now.eta_s === null ? "" : now.eta_s < 1 ? "almost done" : `${Math.ceil(now.eta_s)} s left`;
  return `${capital(now.stage || "waiting for its turn")}${left && ` (${left})`}`;
}
function verdict(now) {
  const read = now.maps.lqn?.alignment;
  if (missing(read?.damage)) return "";
  const range = `Damage ${fixed(read.damage, 3)} is ${read.aligned ? "above" : "within"} the range of clean images`;
  const does = read.aligned ? "LQN aligns the teacher's statistics" : "LQN does not align the teacher";
  return `${range}: ${does}. Mixing weight of the student: ${fixed(read.mixing_weight, 2)}.`;
}
function link(anchor, href, name) {
  anchor.toggleAttribute("href", !!href);
  if (href) { anchor.href = href; anchor.download = name; }
  anchor.setAttribute("aria-disabled", String(!href));
}

// ---- controls -----------------------------------------------------------------------------------

function showSeverity() { $("severity-is").textContent = `${$("severity").value} of 5`; }
function theme(dark) {
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", String(dark));
}
const system = matchMedia("(prefers-color-scheme: dark)");
let own = null;
try { own = localStorage.getItem("theme"); } catch { /* not kept */ }
theme(own ? own === "dark" : system.matches);
system.onchange = () => { if (!own) theme(system.matches); };
$("theme").onclick = () => {
  own = $("theme").getAttribute("aria-pressed") === "true" ? "light" : "dark";
  theme(own === "dark");
  try { localStorage.setItem("theme", own); } catch { /* not kept */ }
};
function wireControls() {
  $("run").onclick = run;
  $("layer").oninput = askLayer;
  $("step").oninput = showStep;
  player($("layer-play"), $("layer"), 0.1, 120);
  player($("step-play"), $("step"), 1, 450);
  $("opacity").oninput = () => { $("opacity-is").textContent = `${$("opacity").value} %`; drawAll(); };
  for (const [id, factor] of [["zoom-in", 1.5], ["zoom-out", 1 / 1.5], ["zoom-reset", 0]])
    $(id).onclick = () => { if (photo) zoomAt(pointed(), factor); };
  for (const id of FIELDS) $(id).onchange = run;
  $("severity").oninput = showSeverity;
  $("file").onchange = () => { upload($("file").files[0]); $("file").value = ""; };
  $("drop").onclick = () => $("file").click();
  for (const kind of ["dragover", "dragleave", "drop"])
    addEventListener(kind, event => {
      event.preventDefault();
      $("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop") upload(event.dataTransfer.files[0]);
    });
  addEventListener("resize", () => { if (!$("layer").disabled) askLayer(); showStep(); });
}
addEventListener("DOMContentLoaded", () => { wireControls(); begin(); });
