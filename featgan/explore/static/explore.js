// The page's state, which is one edit, and the controls that change it.
import { Latest } from "./latest.js";
import { place, showComponents, showRun, signed, speak } from "./show.js";

const byId = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const letters = crypto.getRandomValues(new Uint8Array(12));
const session = [...letters].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const ask = { session, picture: "", second: null, amount: 1, push: null, pins: {}, labels: null, dataset: 0, difference: false };
let seed = 0;

async function post(path, body, kind, signal) {
  const answer = await fetch(path, { method: "POST", body, headers: { "Content-Type": kind }, signal });
  if (answer.ok) return answer;
  throw Object.assign(new Error((await answer.text()).trim() || answer.statusText), { status: answer.status });
}

const latest = new Latest(
  async (signal) => {
    const asked = JSON.stringify(ask);
    const answer = await (await post("edit", asked, "application/json", signal)).json();
    return { asked: JSON.parse(asked), answer };
  },
  ({ asked, answer }) => {
    complain("");
    answer.runs.forEach((found, run) => showRun(run, found, answer.scale, pictureName(asked.picture)));
    byId("source-answer").textContent = answer.runs[0].source ?? "";
    showComponents(answer.runs, ask.pins);
    if (ask.labels === null && answer.runs[0].labels) showLabels(answer.runs[0]);
    document.body.dataset.shown = String(Number(document.body.dataset.shown ?? 0) + 1);
    speak(sentence(answer.runs));
  },
  (error) => {
    if (error.status === 409) return;
    complain(error.status ? error.message : "The server does not answer; is featgan explore still running?");
    if (error.status === 404) forget(ask.picture);
  },
);

function sentence(runs) {
  const names = all(".answer h2").map((title) => title.textContent);
  const said = runs.map((found, run) => (found.headline ? `${names[run]}: ${found.headline}` : found.error ?? "edited"));
  return `${said.join(". ")}.` + (runs[0].source ? ` In the source: ${runs[0].source}.` : "");
}

function complain(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = !text;
}

function pictureName(id) {
  return byId("pictures").querySelector(`input[value="${id}"]`)?.parentElement.title ?? "the picture";
}

// Pictures

function choosePicture(id) {
  ask.picture = id;
  ask.labels = null;
  byId("source").src = `pictures/${id}`;
  byId("source").alt = `Source: ${pictureName(id)}`;
  latest.want();
}

function thumb(picture, group) {
  const [label, input, image] = ["label", "input", "img"].map((kind) => document.createElement(kind));
  Object.assign(input, { type: "radio", name: group, value: picture.id, autocomplete: "off" });
  Object.assign(image, { src: `pictures/${picture.id}`, alt: picture.name });
  label.title = picture.name;
  label.append(input, image);
  return label;
}

function forget(id) {
  all(`.thumbs input[value="${id}"]`).forEach((input) => input.closest("label").remove());
}

// What was dropped in and what is chosen stay; the rest gives way to another sample.
async function showOthers() {
  seed += 1;
  const answer = await fetch(`pictures?seed=${seed}`);
  if (!answer.ok) { complain((await answer.text()).trim()); return; }
  const sample = await answer.json();
  [["pictures", "picture"], ["seconds", "second"]].forEach(([list, group]) => {
    const box = byId(list);
    if (!box) return;
    all("input[value^='v']", box).filter((input) => !input.checked).forEach((input) => input.closest("label").remove());
    const known = new Set(all("input", box).map((input) => input.value));
    sample.filter((picture) => !known.has(picture.id)).forEach((picture) => box.append(thumb(picture, group)));
  });
}

async function upload(file) {
  if (!byId("file")) { complain("Without its black box the run edits validation images only."); return; }
  complain("");
  try {
    const path = `pictures?name=${encodeURIComponent(file.name)}`;
    const picture = await (await post(path, file, file.type || "application/octet-stream")).json();
    byId("pictures").prepend(thumb(picture, "picture"));
    byId("seconds")?.querySelector(".none").after(thumb(picture, "second"));
    byId("pictures").querySelector("input").checked = true;
    byId("pictures").scrollLeft = 0;
    choosePicture(picture.id);
  } catch (error) {
    complain(`${file.name}: ${error.message}`);
  }
}

// Controls of a run on features

function setUpComponent(row) {
  const index = Number(row.dataset.component);
  const slider = row.querySelector("input");
  all(".mark", row).forEach((mark) => place(mark, Number(mark.dataset.at), Number(row.dataset.reach)));
  slider.addEventListener("input", () => {
    ask.pins[index] = Number(slider.value);
    row.querySelector("output").textContent = signed(ask.pins[index]);
    latest.want();
  });
  row.querySelector("[data-reset]").addEventListener("click", () => {
    delete ask.pins[index];
    slider.focus();
    latest.want();
  });
}

function setUpAmount(id, show, change) {
  const slider = byId(id);
  if (!slider) return;
  const draw = () => {
    const text = show(Number(slider.value));
    slider.nextElementSibling.textContent = text;
    slider.setAttribute("aria-valuetext", text);
  };
  slider.addEventListener("input", () => { draw(); change(Number(slider.value)); });
  slider.redraw = draw;
  draw();
}

function setUpPush() {
  const slider = byId("push-amount");
  all('input[name="push"]').forEach((input) => input.addEventListener("change", () => {
    const [kind, index] = input.value.split(" ");
    if (kind && kind !== ask.push?.kind) {
      const { most, start } = input.closest(".choices").dataset;
      Object.assign(slider, { min: -most, max: most, value: start });
      slider.redraw();
    }
    ask.push = kind ? { kind, index: Number(index), amount: Number(slider.value) } : null;
    latest.want();
  }));
}

// Controls of a run on labels

function showLabels(found) {
  all(".labels").forEach((part) => {
    const values = part.dataset.dataset === "0" ? found.labels : Array(Number(part.dataset.count)).fill(0);
    setLabels(part, values);
    part.querySelector("[data-unknown]").hidden = found.known || part.dataset.dataset !== "0";
  });
}

function setLabels(part, values) {
  all("input", part).forEach((input, index) => {
    if (input.type === "range") { input.value = String(values[index]); input.redraw(); }
    else input.checked = values[index] > 0.5;
  });
  drawDot(part);
}

function readLabels(part) {
  return all("input", part).map((input) => (input.type === "range" ? Number(input.value) : Number(input.checked)));
}

function drawDot(part) {
  const dot = part.querySelector(".dot");
  if (!dot) return;
  const [valence, arousal] = readLabels(part);
  dot.style.setProperty("--x", String((valence + 1) / 2));
  dot.style.setProperty("--y", String((1 - arousal) / 2));
}

function setUpLabels(part) {
  const changed = () => {
    ask.labels = readLabels(part);
    ask.dataset = Number(part.dataset.dataset);
    drawDot(part);
    latest.want();
  };
  all("input", part).forEach((input) => {
    if (input.type === "range") { setUpAmount(input.id, signed, changed); return; }
    input.addEventListener("change", () => {
      if ("exclusive" in input.dataset && input.checked) {
        all("[data-exclusive]", part).filter((other) => other !== input).forEach((other) => { other.checked = false; });
      }
      changed();
    });
  });
  setUpPad(part, changed);
}

function setUpPad(part, changed) {
  const pad = part.querySelector(".pad");
  if (!pad) return;
  const follow = (event) => {
    const box = pad.getBoundingClientRect();
    const shares = [(event.clientX - box.left) / box.width, 1 - (event.clientY - box.top) / box.height];
    setLabels(part, shares.map((share) => Math.round(20 * (2 * Math.min(1, Math.max(0, share)) - 1)) / 20));
    changed();
  };
  pad.addEventListener("pointerdown", (event) => { pad.setPointerCapture(event.pointerId); follow(event); });
  pad.addEventListener("pointermove", (event) => { if (pad.hasPointerCapture(event.pointerId)) follow(event); });
}

// Tools

function resetAll() {
  Object.assign(ask, { second: null, push: null, pins: {}, labels: null, dataset: 0 });
  all('input[name="push"][value=""], input[name="second"][value=""]').forEach((input) => { input.checked = true; });
  latest.want();
}

async function save(kind, button) {
  button.disabled = true;
  try {
    const content = await (await post(`save.${kind}`, JSON.stringify(ask), "application/json")).blob();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(content);
    link.download = `featgan.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    complain(error.message);
  } finally {
    button.disabled = false;
  }
}

function setUpDrop() {
  const veil = byId("drop");
  const carriesFile = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (carriesFile(event)) { event.preventDefault(); veil.hidden = false; }
  });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) veil.hidden = true; });
  addEventListener("drop", (event) => {
    veil.hidden = true;
    if (!carriesFile(event)) return;
    event.preventDefault();
    if (event.dataTransfer.files.length) upload(event.dataTransfer.files[0]);
  });
  byId("file")?.addEventListener("change", (event) => {
    if (event.target.files.length) upload(event.target.files[0]);
    event.target.value = "";
  });
}

all(".component").forEach(setUpComponent);
all(".labels").forEach(setUpLabels);
setUpAmount("push-amount", signed, (amount) => { if (ask.push) { ask.push.amount = amount; latest.want(); } });
setUpAmount("second-amount", (amount) => `${Math.round(100 * amount)} %`, (amount) => {
  ask.amount = amount;
  if (ask.second) latest.want();
});
setUpPush();
setUpDrop();
byId("pictures").addEventListener("change", (event) => choosePicture(event.target.value));
byId("seconds")?.addEventListener("change", (event) => { ask.second = event.target.value || null; latest.want(); });
byId("others")?.addEventListener("click", showOthers);
byId("difference").addEventListener("change", (event) => { ask.difference = event.target.checked; latest.want(); });
byId("reset").addEventListener("click", resetAll);
all("[data-save]").forEach((button) => button.addEventListener("click", () => save(button.dataset.save, button)));
// The token stays in the cookie, out of the address and the history.
if (location.search) history.replaceState(null, "", location.pathname);
const first = byId("pictures").querySelector("input");
if (first) choosePicture(first.value);
