"use strict";
// Depth and steps of the fit with their curves, and the table of numbers.

let depthBusy = false, depthNext = null;
async function askLayer() {  // one request at a time; the last position of the slider wins
  depthNext = +$("layer").value;
  if (depthBusy) return;
  depthBusy = true;
  const mine = job;
  await safely(async () => {
    while (depthNext !== null && mine === job) {
      const layer = depthNext;
      depthNext = null;
      const found = await (await ask(`api/job/${mine}/depth?layer=${layer}`)).json();
      if (mine === job) showLayer(layer, found);
    }
  })();
  depthBusy = false;
  if (depthNext !== null && status.depth) askLayer();
}
function showLayer(layer, found) {
  for (const kind of ["teacher", "student", "error"]) $(`map-${kind}`).src = found[kind];
  $("layer-is").textContent = `Layer ${layer.toFixed(2)}${found.between ? ", between two layers" : ""}`;
  $("layer-is").dataset.layer = layer;
  $("layer-error").textContent = `Student error ${fixed(found.error_over_variance, 2)} × variance`;
  const errors = status.depth.error_over_variance, layers = errors.map((_, k) => k + 1);
  const now = {x: layer, y: found.error_over_variance};
  chart($("depth-curve"), {name: "Student error (× variance)", under: "layer", most: 1, xs: layers, ys: errors, now});
}
const showStep = safely(async () => {
  const {steps, metric} = status, mine = job;
  if (!steps?.made.length) return;
  const k = +$("step").value, made = steps.made[k], change = steps.error_over_variance[k], score = steps.score[k];
  $("step-is").textContent = `Step ${made} of ${steps.wanted.at(-1)}`;
  $("step-is").dataset.step = made;
  const quality = missing(score) ? "" : `${metric} ${fixed(score, 1)}, `;
  $("step-error").textContent = `${quality}change ${fixed(change, 3)} × variance`;
  const common = {under: "steps", xs: steps.made.map((_, n) => n), names: steps.made};
  $("score-curve").hidden = missing(score);
  const scores = {name: `${metric} of this image`, most: 100, ys: steps.score, now: {x: k, y: score}};
  const ys = steps.error_over_variance, name = "Change by the student (× variance)";
  chart($("score-curve"), {...common, ...scores});
  chart($("step-curve"), {...common, name, most: 0.01, ys, now: {x: k, y: change}});
  const view = viewOf("step");
  await load(view, `step-${made}`, {segments: steps.segments[k]});
  if (mine === job && +$("step").value !== k) showStep();
});
function chart(place, {name, under, most, xs, ys, now, names = xs}) {
  const width = Math.max(place.clientWidth, 120), height = Math.max(place.clientHeight, 120);
  const left = 44, right = width - 14, top = 30, bottom = height - 38;
  const high = Math.max(most, ...ys.filter(y => !missing(y)), now.y ?? 0), tick = nice(high / 3);
  const px = x => left + 10 + (x - xs[0]) / Math.max(xs.at(-1) - xs[0], 1e-9) * (right - left - 20);
  const py = y => bottom - y / high * (bottom - top);
  const digits = Math.max(0, Math.ceil(-Math.log10(tick) - 1e-9)), parts = [];
  const text = (x, y, words, anchor, kind = "") =>
    parts.push(`<text x="${x}" y="${y}" text-anchor="${anchor}" class="${kind}">${words}</text>`);
  text(0, 14, name, "start", "name");
  for (let y = 0; y <= high * 1.0001; y += tick) {
    parts.push(`<line class="grid" x1="${left}" x2="${right}" y1="${py(y)}" y2="${py(y)}"/>`);
    text(left - 6, py(y) + 4, y.toFixed(digits), "end");
  }
  const every = Math.ceil(xs.length * 30 / (right - left));
  xs.forEach((x, k) => { if (k % every === 0) text(px(x), bottom + 17, names[k], "middle"); });
  text((left + right) / 2, bottom + 34, under, "middle");
  parts.push(`<line class="mark" x1="${px(now.x)}" x2="${px(now.x)}" y1="${top}" y2="${bottom}"/>`);
  const dots = xs.map((x, k) => [x, ys[k]]).filter(([, y]) => !missing(y)).map(([x, y]) => [px(x), py(y)]);
  parts.push(`<polyline class="line" points="${dots.map(dot => dot.join()).join(" ")}"/>`);
  for (const [x, y] of dots) parts.push(`<circle class="dot" cx="${x}" cy="${y}" r="3"/>`);
  if (!missing(now.y)) parts.push(`<circle class="now" cx="${px(now.x)}" cy="${py(now.y)}" r="5"/>`);
  place.innerHTML = `<svg role="img" aria-label="${name}, by ${under}">${parts.join("")}</svg>`;
}
function nice(x) {  // 1, 2 or 5 times a power of ten, at least x
  const power = 10 ** Math.floor(Math.log10(x));
  return power * [1, 2, 5, 10].find(k => k * power >= x * 0.999);
}
function player(button, slider, by, pause) {  // moves a slider to its end
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  button.onclick = () => {
    if (timer) return stop();
    if (+slider.value >= +slider.max) slider.value = slider.min;
    button.textContent = "Stop";
    timer = setInterval(() => {
      if (slider.disabled || +slider.value >= +slider.max) return stop();
      slider.value = +slider.value + by;
      slider.dispatchEvent(new Event("input"));
    }, pause);
  };
}

// ---- numbers: what each is, its unit, and how to get it from a method's map ---------------------

const gain = (map, now) =>
  missing(map.score) || missing(now.maps.teacher?.score) ? null : map.score - now.maps.teacher.score;
const total = map => Object.values(map.milliseconds).reduce((sum, ms) => sum + ms, 0);
const ofStudent = (map, x) => missing(map.alignment.mixing_weight) ? "–" : fixed(x, 3);
const ROWS = [  // label, unit, meaning, value
  ["METRIC", "0 to 100", "quality of this one image's masks", map => fixed(map.score, 1)],
  ["METRIC gain", "points", "above the teacher's", (map, now) => fixed(gain(map, now), 1)],
  ["Damage", "no unit", "how far the statistics of the patch embedding lie outside those of clean images",
    map => fixed(map.alignment.damage, 3)],
  ["Aligned", "yes or no", "whether the damage is more than clean images have",
    map => missing(map.alignment.aligned) ? "–" : map.alignment.aligned ? "yes" : "no"],
  ["Mixing weight", "0 to 1", "of the student's tokens against the teacher's",
    map => fixed(map.alignment.mixing_weight, 2)],
  ["Change by the student", "× variance", "mean squared change of the last layer's tokens",
    map => ofStudent(map, map.error_over_variance)],
  ["Cosine", "−1 to 1", "between the last layer's tokens before and after that change",
    map => ofStudent(map, map.token_cos)],
  ["Time, teacher", "ms", "all its passes", map => fixed(map.milliseconds.teacher_ms, 0)],
  ["Time, fit", "ms", "of the student", map => fixed(map.milliseconds.fit_ms, 0)],
  ["Time, query", "ms", "of the student", map => fixed(map.milliseconds.query_ms, 0)],
  ["Time, mask head", "ms", "of the teacher", map => fixed(map.milliseconds.head_ms, 0)],
  ["Time, total", "ms", "the sum of these four", map => fixed(total(map), 0)],
  ["Cost", "GMACs", "10⁹ multiply-adds, forward and backward", map => fixed(map.gmacs.gmacs_total, 2)],
];
function numbers(now) {
  const names = chosen(), small = (className, textContent) => make("small", {className, textContent});
  const head = names.map(name => make("th", {scope: "col", textContent: titleOf(name)}));
  const rows = ROWS.map(([label, unit, meaning, value]) => {
    const words = [make("span", {textContent: label.replace("METRIC", now.metric)}), small("unit", unit), small("meaning", meaning)];
    const cells = names.map(name => now.maps[name] ? value(now.maps[name], now) : "–");
    const row = make("th", {scope: "row"}, make("div", {}, ...words));
    return make("tr", {}, row, ...cells.map(textContent => make("td", {textContent})));
  });
  const top = make("tr", {}, make("th"), ...head);
  $("numbers").replaceChildren(make("thead", {}, top), make("tbody", {}, ...rows));
  const meanings = ROWS.map(([label, , meaning]) => `${label.replace("METRIC", now.metric)}: ${meaning}.`);
  $("meanings").textContent = meanings.join(" ");
}
