// Displays a response of the server: images, bars, and the marks on the sliders.

const ANNOUNCE_DELAY_MILLISECONDS = 700;
let announceTimer = 0;

export function formatNumber(value) {
  const text = Math.abs(value).toFixed(2);
  return (value < 0 && Number(text) ? "\u2212" : "") + text;
}

export function formatSigned(value) {
  const text = formatNumber(value);
  return text.startsWith("\u2212") ? text : `+${text}`;
}

// Sets the position of a value on a slider from -limit to limit, as a fraction of the slider's length.
export function setPosition(element, value, limit) {
  element.style.setProperty("--position", String(Math.min(1, Math.max(0, (value + limit) / (2 * limit)))));
}

// Screen readers announce the final result, not every intermediate one.
export function announce(text) {
  clearTimeout(announceTimer);
  announceTimer = setTimeout(() => { document.getElementById("announcement").textContent = text; }, ANNOUNCE_DELAY_MILLISECONDS);
}

function findDisplay(run, kind, name) {
  return document.querySelector(`.${kind}[data-run="${run}"] [data-show="${name}"]`);
}

export function showRunResult(run, runResult, scale, sourceImageName) {
  const edited = findDisplay(run, "edit", "edited");
  if (runResult.edited) edited.src = runResult.edited;
  edited.alt = runResult.edited ? `${sourceImageName}, edited` : "";
  document.querySelector(`.edit[data-run="${run}"]`).classList.toggle("failed", !runResult.edited);
  findDisplay(run, "edit", "prediction").textContent = runResult.prediction ?? "";
  const differenceImage = findDisplay(run, "difference-map", "difference");
  differenceImage.closest("figure").hidden = !runResult.difference;
  if (runResult.difference) {
    const range = `up to ${Math.round(100 * scale)} %`;
    differenceImage.src = runResult.difference;
    differenceImage.alt = `Difference map, ${range} of the value range`;
    findDisplay(run, "difference-map", "scale").textContent = range;
  }
  findDisplay(run, "prediction", "error").textContent = runResult.error ?? "";
  findDisplay(run, "prediction", "target-progress").textContent = describeTargetProgress(runResult.target_progress ?? null);
  showBars(document.querySelector(`.prediction[data-run="${run}"] .bars`), runResult.bars ?? []);
}

function describeTargetProgress(targetProgress) {
  if (targetProgress === null) return "";
  return `Target progress: ${formatNumber(targetProgress)} (0: features unchanged, 1: target reached).`;
}

// Each bar goes from zero to the value for the edited image; the tick marks the value for the source.
function showBars(list, bars) {
  const values = bars.flatMap((bar) => [bar.value, bar.source]);
  const minimum = Math.min(0, ...values);
  const maximum = Math.max(minimum < 0 ? -minimum : 1, ...values);
  const low = minimum < 0 ? -maximum : 0;
  const toShare = (value) => (value - low) / (maximum - low);
  while (list.children.length > bars.length) list.lastChild.remove();
  while (list.children.length < bars.length) list.append(createBar());
  bars.forEach((bar, index) => {
    const [name, track, text] = list.children[index].children;
    name.textContent = bar.name.replaceAll("_", " ");
    text.textContent = bar.text;
    track.children[0].style.setProperty("--from", String(Math.min(toShare(0), toShare(bar.value))));
    track.children[0].style.setProperty("--to", String(Math.max(toShare(0), toShare(bar.value))));
    track.children[1].style.setProperty("--position", String(toShare(bar.source)));
  });
}

function createBar() {
  const [row, name, track, text] = ["li", "span", "span", "span"].map((kind) => document.createElement(kind));
  [name.className, track.className, text.className] = ["name", "track", "text"];
  track.setAttribute("aria-hidden", "true");
  track.append(document.createElement("span"), document.createElement("i"));
  row.append(name, track, text);
  return row;
}

// Sliders show the target values, except those that the user has set; rings show source and diamonds measured values.
export function showComponents(runs, componentValues) {
  const runResult = runs[0];
  if (!runResult.target_values) return;
  document.querySelectorAll(".component").forEach((row) => {
    const index = Number(row.dataset.component);
    const limit = Number(row.dataset.limit);
    const slider = row.querySelector("input");
    if (!(index in componentValues)) slider.value = String(runResult.target_values[index]);
    setPosition(row.querySelector(".source-value"), runResult.source_values[index], limit);
    row.querySelectorAll(".measured-value").forEach((mark) => {
      const measuredValues = runs[Number(mark.dataset.run)].measured_values;
      mark.hidden = measuredValues?.[index] === undefined;
      if (!mark.hidden) setPosition(mark, measuredValues[index], limit);
    });
    const target = index in componentValues ? componentValues[index] : runResult.target_values[index];
    showTargetValue(row, target, runResult.measured_values?.[index]);
    row.querySelector("[data-reset]").disabled = !(index in componentValues);
  });
}

function showTargetValue(row, target, measured) {
  const text = measured === undefined ? formatSigned(target) : `${formatSigned(target)}, measured ${formatSigned(measured)}`;
  row.querySelector("output").textContent = text;
  row.querySelector("input").setAttribute("aria-valuetext", `${text} standard deviations`);
}
