"use strict";
// Without this script the strips of all frames still show; with it, each card gets its screens and its slider.
(() => {
  const FRAME_MILLISECONDS = 110;
  const root = document.documentElement;
  const radios = [...document.querySelectorAll('input[name="source"]')];
  const chosen = () => Math.max(0, radios.findIndex((radio) => radio.checked));
  const sourceName = (index) => radios[index].parentElement.querySelector("img").alt;

  function setUpCard(card) {
    const frames = Number(card.dataset.frames);
    const rows = Number(card.dataset.rows);
    const labels = JSON.parse(card.dataset.labels);
    const slider = card.querySelector('input[type="range"]');
    const output = card.querySelector("output");
    const films = [...card.querySelectorAll(".films img")];
    const screens = Object.fromEntries(
      [...card.querySelectorAll("[data-screen]")].map((image) => [image.dataset.screen, image]),
    );
    const marker = card.querySelector(".marker");
    const button = card.querySelector("[data-play]");
    let timer = 0;
    let direction = 1;

    // One film image holds every frame; the screen shows the part that lies at (frame, row).
    function place(image, frame, row) {
      image.style.width = `${100 * frames}%`;
      image.style.height = `${100 * rows}%`;
      image.style.transform = `translate(${(-100 * frame) / frames}%, ${(-100 * row) / rows}%)`;
    }

    function showSource() {
      const index = chosen();
      films.forEach((film, position) => { film.hidden = position !== index; });
      screens.source.src = radios[index].parentElement.querySelector("img").src;
      screens.source.alt = `Source ${index + 1}, ${sourceName(index)}`;
      screens.edit.src = films[index].src;
      if (screens.difference) screens.difference.src = films[index].src;
      showFrame();
    }

    function showFrame() {
      const frame = Number(slider.value);
      const what = `source ${chosen() + 1}, ${card.dataset.title} at ${labels[frame]}`;
      output.textContent = labels[frame];
      slider.setAttribute("aria-valuetext", labels[frame]);
      marker.style.left = `${(100 * frame) / frames}%`;
      place(screens.edit, frame, 0);
      screens.edit.alt = `Edited ${what}`;
      if (screens.difference) {
        place(screens.difference, frame, 1);
        screens.difference.alt = `Difference map of ${what}`;
      }
    }

    function stop() {
      window.clearInterval(timer);
      timer = 0;
      button.setAttribute("aria-pressed", "false");
    }

    function advance() {
      const frame = Number(slider.value);
      if (frame + direction < 0 || frame + direction >= frames) direction = -direction;
      slider.value = String(frame + direction);
      showFrame();
    }

    slider.addEventListener("input", () => { stop(); showFrame(); });
    button.addEventListener("click", () => {
      if (timer) { stop(); return; }
      button.setAttribute("aria-pressed", "true");
      timer = window.setInterval(advance, Math.max(FRAME_MILLISECONDS, 1400 / frames));
    });
    card.querySelector(".films").addEventListener("click", (event) => {
      const box = event.currentTarget.getBoundingClientRect();
      const frame = Math.floor((frames * (event.clientX - box.left)) / box.width);
      slider.value = String(Math.min(frames - 1, Math.max(0, frame)));
      stop();
      showFrame();
    });
    radios.forEach((radio) => radio.addEventListener("change", showSource));
    showSource();
  }

  document.querySelectorAll("[data-film]").forEach(setUpCard);
  root.classList.add("scripted");
})();
