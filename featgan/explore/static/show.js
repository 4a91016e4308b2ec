// Draws an answer of the server: pictures, bars, and the marks on the sliders.

const SPEAK_MILLISECONDS = 700;
let speaking = 0;

export function plain(value) {
  const text = Math.abs(value).toFixed(2);
  return (value < 0 && Number(text) ? "\u2212" : "") + text;
}

export function signed(value) {
  const text = plain(value);
  return text.startsWith("\u2212") ? text : `+${text}`;
}

// Where a value lies on a slider, as a share of the way its thumb goes.
export function place(element, value, reach) {
  element.style.setProperty("--at", String(Math.min(1, Math.max(0, (value + reach) / (2 * reach)))));
}

// A screen reader hears where the answer came to rest, not every step on the way.
export function speak(text) {
  clearTimeout(speaking);
  speaking = setTimeout(() => { document.getElementById("spoken").textContent = text; }, SPEAK_MILLISECONDS);
}

function part(run, kind, name) {
  return document.querySelector(`.${kind}[data-run="${run}"] [data-show="${name}"]`);
}

export function showRun(run, found, scale, sourceName) {
  const edited = part(run, "edit", "edited");
  if (found.edited) edited.src = found.edited;
  edited.alt = found.edited ? `${sourceName}, edited` : "";
  document.querySelector(`.edit[data-run="${run}"]`).classList.toggle("failed", !found.edited);
  part(run, "edit", "headline").textContent = found.headline ?? "";
  const change = part(run, "change", "difference");
  change.closest("figure").hidden = !found.difference;
  if (found.difference) {
    change.src = found.difference;
    change.alt = `Where the edit differs, brightest at ${Math.round(100 * scale)} % of the range`;
    part(run, "change", "scale").textContent = `brightest at ${Math.round(100 * scale)} %`;
  }
  part(run, "answer", "error").textContent = found.error ?? "";
  const arrived = found.shift ?? null;
  part(run, "answer", "shift").textContent = arrived === null ? "" :
    `The box saw ${String(Math.round(100 * arrived) || 0).replace("-", "\u2212")} % of the change that was asked for (relative shift ${plain(arrived)}).`;
  showBars(document.querySelector(`.answer[data-run="${run}"] .bars`), found.bars ?? []);
}

// A bar from zero to the value; the tick is the source's.
function showBars(list, bars) {
  const values = bars.flatMap((bar) => [bar.value, bar.source]);
  const least = Math.min(0, ...values);
  const most = Math.max(least < 0 ? -least : 1, ...values);
  const low = least < 0 ? -most : 0;
  const share = (value) => (value - low) / (most - low);
  while (list.children.length > bars.length) list.lastChild.remove();
  while (list.children.length < bars.length) list.append(newBar());
  bars.forEach((bar, index) => {
    const [name, track, text] = list.children[index].children;
    name.textContent = bar.name.replaceAll("_", " ");
    text.textContent = bar.text;
    track.children[0].style.setProperty("--from", String(Math.min(share(0), share(bar.value))));
    track.children[0].style.setProperty("--to", String(Math.max(share(0), share(bar.value))));
    track.children[1].style.setProperty("--at", String(share(bar.source)));
  });
}

function newBar() {
  const [row, name, track, text] = ["li", "span", "span", "span"].map((kind) => document.createElement(kind));
  [name.className, track.className, text.className] = ["name", "track", "text"];
  track.setAttribute("aria-hidden", "true");
  track.append(document.createElement("span"), document.createElement("i"));
  row.append(name, track, text);
  return row;
}

// Sliders follow what is asked, but for the one in hand; rings and diamonds say what is and what is seen.
export function showComponents(runs, pins) {
  const found = runs[0];
  if (!found.asked) return;
  document.querySelectorAll(".component").forEach((row) => {
    const index = Number(row.dataset.component);
    const reach = Number(row.dataset.reach);
    const slider = row.querySelector("input");
    if (!(index in pins)) slider.value = String(found.asked[index]);
    place(row.querySelector(".own"), found.own[index], reach);
    row.querySelectorAll(".measured").forEach((mark) => {
      const measured = runs[Number(mark.dataset.run)].measured;
      mark.hidden = measured?.[index] === undefined;
      if (!mark.hidden) place(mark, measured[index], reach);
    });
    showAsked(row, index in pins ? pins[index] : found.asked[index], found.measured?.[index]);
    row.querySelector("[data-reset]").disabled = !(index in pins);
  });
}

function showAsked(row, asked, measured) {
  const text = measured === undefined ? signed(asked) : `${signed(asked)}, seen ${signed(measured)}`;
  row.querySelector("output").textContent = text;
  row.querySelector("input").setAttribute("aria-valuetext", `${text} deviations`);
}
