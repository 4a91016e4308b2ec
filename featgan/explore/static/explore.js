// The state of the page, which is one edit request, and the controls that change it.
import { LatestRequest } from "./latest_request.js";
import { announce, formatSigned, setPosition, showComponents, showRunResult } from "./render_result.js";

const byId = (id) => document.getElementById(id);
const queryAll = (selector, within = document) => [...within.querySelectorAll(selector)];
const randomBytes = crypto.getRandomValues(new Uint8Array(12));
const clientId = [...randomBytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const editRequest = {
  client_id: clientId, image: "", target_image: null, amount: 1, class_step: null, component_values: {}, labels: null,
  dataset: 0, include_difference: false,
};
let seed = 0;

async function post(path, body, kind, signal) {
  const response = await fetch(path, { method: "POST", body, headers: { "Content-Type": kind }, signal });
  if (response.ok) return response;
  throw Object.assign(new Error((await response.text()).trim() || response.statusText), { status: response.status });
}

const latestRequest = new LatestRequest(
  async (signal) => {
    const sentRequest = JSON.stringify(editRequest);
    const result = await (await post("edit", sentRequest, "application/json", signal)).json();
    return { sentRequest: JSON.parse(sentRequest), result };
  },
  ({ sentRequest, result }) => {
    showError("");
    result.runs.forEach((runResult, run) => showRunResult(run, runResult, result.scale, imageName(sentRequest.image)));
    byId("source-prediction").textContent = result.runs[0].source_prediction ?? "";
    showComponents(result.runs, editRequest.component_values);
    if (editRequest.labels === null && result.runs[0].labels) showLabels(result.runs[0]);
    document.body.dataset.numShown = String(Number(document.body.dataset.numShown ?? 0) + 1);
    announce(describePredictions(result.runs));
  },
  (error) => {
    if (error.status === 409) return;
    showError(error.status ? error.message : "The server does not respond. Is featgan explore still running?");
    if (error.status === 404) removeImage(editRequest.image);
  },
);

function describePredictions(runs) {
  const titles = queryAll(".prediction h2").map((title) => title.textContent);
  const sentences = runs.map((runResult, run) => (
    runResult.prediction ? `${titles[run]}: ${runResult.prediction}` : runResult.error ?? "edited"
  ));
  const source = runs[0].source_prediction ? ` Prediction for the source: ${runs[0].source_prediction}.` : "";
  return `${sentences.join(". ")}.${source}`;
}

function showError(text) {
  byId("error-message").textContent = text;
  byId("error-message").hidden = !text;
}

function imageName(id) {
  return byId("images").querySelector(`input[value="${id}"]`)?.parentElement.title ?? "the image";
}

// Images

function chooseImage(id) {
  editRequest.image = id;
  editRequest.labels = null;
  byId("source").src = `images/${id}`;
  byId("source").alt = `Source: ${imageName(id)}`;
  latestRequest.schedule();
}

function createThumbnail(image, group) {
  const [label, input, thumbnail] = ["label", "input", "img"].map((kind) => document.createElement(kind));
  Object.assign(input, { type: "radio", name: group, value: image.id, autocomplete: "off" });
  Object.assign(thumbnail, { src: `images/${image.id}`, alt: image.name });
  label.title = image.name;
  label.append(input, thumbnail);
  return label;
}

function removeImage(id) {
  queryAll(`.thumbnails input[value="${id}"]`).forEach((input) => input.closest("label").remove());
}

// Replaces the validation images by another sample; uploaded and selected images stay.
async function showOtherImages() {
  seed += 1;
  const response = await fetch(`images?seed=${seed}`);
  if (!response.ok) { showError((await response.text()).trim()); return; }
  const sample = await response.json();
  [["images", "image"], ["target-images", "target-image"]].forEach(([list, group]) => {
    const container = byId(list);
    if (!container) return;
    queryAll("input[value^='v']", container).filter((input) => !input.checked).forEach((input) => input.closest("label").remove());
    const known = new Set(queryAll("input", container).map((input) => input.value));
    sample.filter((image) => !known.has(image.id)).forEach((image) => container.append(createThumbnail(image, group)));
  });
}

async function upload(file) {
  if (!byId("file")) { showError("The classifier is not available, so only validation images can be edited."); return; }
  showError("");
  try {
    const path = `images?name=${encodeURIComponent(file.name)}`;
    const image = await (await post(path, file, file.type || "application/octet-stream")).json();
    byId("images").prepend(createThumbnail(image, "image"));
    byId("target-images")?.querySelector(".none").after(createThumbnail(image, "target-image"));
    byId("images").querySelector("input").checked = true;
    byId("images").scrollLeft = 0;
    chooseImage(image.id);
  } catch (error) {
    showError(`${file.name}: ${error.message}`);
  }
}

// Controls of a feature-conditioned run

function setUpComponent(row) {
  const index = Number(row.dataset.component);
  const slider = row.querySelector("input");
  queryAll(".mark", row).forEach((mark) => setPosition(mark, Number(mark.dataset.position), Number(row.dataset.limit)));
  slider.addEventListener("input", () => {
    editRequest.component_values[index] = Number(slider.value);
    row.querySelector("output").textContent = formatSigned(editRequest.component_values[index]);
    latestRequest.schedule();
  });
  row.querySelector("[data-reset]").addEventListener("click", () => {
    delete editRequest.component_values[index];
    slider.focus();
    latestRequest.schedule();
  });
}

function setUpAmount(id, format, onChange) {
  const slider = byId(id);
  if (!slider) return;
  const updateOutput = () => {
    const text = format(Number(slider.value));
    slider.nextElementSibling.textContent = text;
    slider.setAttribute("aria-valuetext", text);
  };
  slider.addEventListener("input", () => { updateOutput(); onChange(Number(slider.value)); });
  slider.updateOutput = updateOutput;
  updateOutput();
}

function setUpClassStep() {
  const slider = byId("class-step-amount");
  queryAll('input[name="class-step"]').forEach((input) => input.addEventListener("change", () => {
    const [kind, index] = input.value.split(" ");
    if (kind && kind !== editRequest.class_step?.kind) {
      const { max, initial, amountLabel } = input.closest(".choices").dataset;
      Object.assign(slider, { min: -max, max, value: initial });
      slider.labels[0].textContent = amountLabel;
      slider.updateOutput();
    }
    editRequest.class_step = kind ? { kind, index: Number(index), amount: Number(slider.value) } : null;
    latestRequest.schedule();
  }));
}

// Controls of a label-conditioned run

function showLabels(runResult) {
  queryAll(".labels").forEach((fieldset) => {
    const values = fieldset.dataset.dataset === "0" ? runResult.labels : Array(Number(fieldset.dataset.count)).fill(0);
    setLabels(fieldset, values);
    fieldset.querySelector("[data-unknown]").hidden = runResult.has_known_labels || fieldset.dataset.dataset !== "0";
  });
}

function setLabels(fieldset, values) {
  queryAll("input", fieldset).forEach((input, index) => {
    if (input.type === "range") { input.value = String(values[index]); input.updateOutput(); }
    else input.checked = values[index] > 0.5;
  });
  drawPadPoint(fieldset);
}

function readLabels(fieldset) {
  return queryAll("input", fieldset).map((input) => (input.type === "range" ? Number(input.value) : Number(input.checked)));
}

function drawPadPoint(fieldset) {
  const point = fieldset.querySelector(".pad-point");
  if (!point) return;
  const [valence, arousal] = readLabels(fieldset);
  point.style.setProperty("--x", String((valence + 1) / 2));
  point.style.setProperty("--y", String((1 - arousal) / 2));
}

function setUpLabels(fieldset) {
  const onLabelsChanged = () => {
    editRequest.labels = readLabels(fieldset);
    editRequest.dataset = Number(fieldset.dataset.dataset);
    drawPadPoint(fieldset);
    latestRequest.schedule();
  };
  queryAll("input", fieldset).forEach((input) => {
    if (input.type === "range") { setUpAmount(input.id, formatSigned, onLabelsChanged); return; }
    input.addEventListener("change", () => {
      if ("exclusive" in input.dataset && input.checked) {
        queryAll("[data-exclusive]", fieldset).filter((otherInput) => otherInput !== input).forEach((otherInput) => { otherInput.checked = false; });
      }
      onLabelsChanged();
    });
  });
  setUpPad(fieldset, onLabelsChanged);
}

function setUpPad(fieldset, onLabelsChanged) {
  const pad = fieldset.querySelector(".valence-arousal-pad");
  if (!pad) return;
  const movePadPoint = (event) => {
    const bounds = pad.getBoundingClientRect();
    const shares = [(event.clientX - bounds.left) / bounds.width, 1 - (event.clientY - bounds.top) / bounds.height];
    setLabels(fieldset, shares.map((share) => Math.round(20 * (2 * Math.min(1, Math.max(0, share)) - 1)) / 20));
    onLabelsChanged();
  };
  pad.addEventListener("pointerdown", (event) => { pad.setPointerCapture(event.pointerId); movePadPoint(event); });
  pad.addEventListener("pointermove", (event) => { if (pad.hasPointerCapture(event.pointerId)) movePadPoint(event); });
}

// Tools

function resetAll() {
  Object.assign(editRequest, { target_image: null, class_step: null, component_values: {}, labels: null, dataset: 0 });
  queryAll('input[name="class-step"][value=""], input[name="target-image"][value=""]').forEach((input) => { input.checked = true; });
  latestRequest.schedule();
}

async function save(kind, button) {
  button.disabled = true;
  try {
    const content = await (await post(`save.${kind}`, JSON.stringify(editRequest), "application/json")).blob();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(content);
    link.download = `featgan.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    showError(error.message);
  } finally {
    button.disabled = false;
  }
}

function setUpFileDrop() {
  const dropOverlay = byId("drop-overlay");
  const carriesFile = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (carriesFile(event)) { event.preventDefault(); dropOverlay.hidden = false; }
  });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) dropOverlay.hidden = true; });
  addEventListener("drop", (event) => {
    dropOverlay.hidden = true;
    if (!carriesFile(event)) return;
    event.preventDefault();
    if (event.dataTransfer.files.length) upload(event.dataTransfer.files[0]);
  });
  byId("file")?.addEventListener("change", (event) => {
    if (event.target.files.length) upload(event.target.files[0]);
    event.target.value = "";
  });
}

queryAll(".component").forEach(setUpComponent);
queryAll(".labels").forEach(setUpLabels);
setUpAmount("class-step-amount", formatSigned, (amount) => {
  if (editRequest.class_step) { editRequest.class_step.amount = amount; latestRequest.schedule(); }
});
setUpAmount("target-amount", (amount) => `${Math.round(100 * amount)} %`, (amount) => {
  editRequest.amount = amount;
  if (editRequest.target_image) latestRequest.schedule();
});
setUpClassStep();
setUpFileDrop();
byId("images").addEventListener("change", (event) => chooseImage(event.target.value));
byId("target-images")?.addEventListener("change", (event) => {
  editRequest.target_image = event.target.value || null;
  latestRequest.schedule();
});
byId("other-images")?.addEventListener("click", showOtherImages);
byId("difference").addEventListener("change", (event) => {
  editRequest.include_difference = event.target.checked;
  latestRequest.schedule();
});
byId("reset").addEventListener("click", resetAll);
queryAll("[data-save]").forEach((button) => button.addEventListener("click", () => save(button.dataset.save, button)));
// The cookie carries the token; removing it from the address keeps it out of the browser's history.
if (location.search) history.replaceState(null, "", location.pathname);
const firstInput = byId("images").querySelector("input");
if (firstInput) chooseImage(firstInput.value);
