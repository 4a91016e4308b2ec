"use strict";
// The ranking, the grids and the metrics work without this script; it adds the images and the slider of each card.
(() => {
  const FRAME_MILLISECONDS = 130;
  const data = JSON.parse(document.getElementById("data").textContent);
  const radios = [...document.querySelectorAll('input[name="source"]')];
  const selectedSource = () => Math.max(0, radios.findIndex((radio) => radio.checked));
  const formatValue = (value) => (data.isProbability ? `${Math.round(100 * value)} %` : value.toFixed(2).replace("-", "−"));

  // The filmstrips of the source shown first are stored once, in the images of the page: read them from there.
  for (const image of document.querySelectorAll("[data-strip][src]")) {
    const card = image.closest("[data-card], [data-film]");
    const film = data.films[card.dataset.card || card.id];
    film.films[data.start] = image.src;
  }

  function setUpCard(card) {
    const film = data.films[card.id];
    const frames = film.labels.length;
    const slider = card.querySelector('input[type="range"]');
    const output = card.querySelector("output");
    const strip = card.querySelector("[data-strip]");
    const screens = Object.fromEntries(
      [...card.querySelectorAll("[data-screen]")].map((image) => [image.dataset.screen, image]),
    );
    const bars = [...card.querySelectorAll(".outputs li")];
    const marker = card.querySelector(".marker");
    const button = card.querySelector("[data-play]");
    let timer = 0;
    let direction = 1;

    // A filmstrip holds every frame; the screen shows one of them.
    function showFrameOf(image, frame) {
      image.style.width = `${100 * frames}%`;
      image.style.transform = `translateX(${(-100 * frame) / frames}%)`;
    }

    function showSource() {
      const source = data.sources[selectedSource()];
      strip.src = film.films[selectedSource()];
      screens.source.src = source.image;
      screens.source.alt = `Source ${selectedSource() + 1}, ${source.name}`;
      screens.edit.src = strip.src;
      if (screens.difference) screens.difference.src = film.maps[selectedSource()];
      bars.forEach((bar, index) => {
        const sourceMarker = bar.querySelector(".source-marker");
        if (sourceMarker && source.outputs.length) sourceMarker.style.left = `${100 * source.outputs[film.bars[index]]}%`;
      });
      showFrame();
    }

    function showFrame() {
      const frame = Number(slider.value);
      const description = `source ${selectedSource() + 1}, ${film.title} at ${film.labels[frame]}`;
      const outputs = bars.map((_, index) => film.outputs[selectedSource()][frame][index]);
      const top = outputs.indexOf(Math.max(...outputs));
      output.textContent = film.labels[frame];
      slider.setAttribute("aria-valuetext", film.labels[frame] +
        (bars.length && data.isProbability ? `; ${data.names[film.bars[top]]} ${formatValue(outputs[top])}` : ""));
      marker.style.left = `${(100 * frame) / frames}%`;
      showFrameOf(screens.edit, frame);
      screens.edit.alt = `Edited ${description}`;
      if (screens.difference) {
        showFrameOf(screens.difference, frame);
        screens.difference.alt = `Difference map of ${description}`;
      }
      bars.forEach((bar, index) => {
        const level = bar.querySelector(".level");
        if (level) level.style.width = `${100 * outputs[index]}%`;
        bar.querySelector(".value").textContent = formatValue(outputs[index]);
      });
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
      timer = window.setInterval(advance, FRAME_MILLISECONDS);
    });
    card.querySelector(".films").addEventListener("click", (event) => {
      const bounds = event.currentTarget.getBoundingClientRect();
      const frame = Math.floor((frames * (event.clientX - bounds.left)) / bounds.width);
      slider.value = String(Math.min(frames - 1, Math.max(0, frame)));
      stop();
      showFrame();
    });
    radios.forEach((radio) => radio.addEventListener("change", showSource));
    showSource();
  }

  // The strips at the top of the page show the selected source, too.
  for (const image of document.querySelectorAll(".results [data-strip]")) {
    const id = image.dataset.card || image.closest("[data-card]").dataset.card;
    const altPrefix = image.alt.replace(data.sources[data.start].name, "");
    radios.forEach((radio, index) => radio.addEventListener("change", () => {
      if (!radio.checked) return;
      image.src = data.films[id].films[index];
      image.alt = altPrefix + data.sources[index].name;
    }));
    image.parentElement.addEventListener("click", () => document.getElementById(id).scrollIntoView());
  }

  // So do the outputs below the edits toward each class.
  function showClassEdits() {
    const source = selectedSource();
    const image = document.querySelector("[data-class-edit-source]");
    image.src = data.sources[source].image;
    image.alt = `Source: ${data.sources[source].name}`;
    document.querySelector("[data-source-class]").textContent = data.classEdits.sourceClasses[source];
    document.querySelectorAll(".class-edits li").forEach((item, index) => {
      const classEdit = data.classEdits.rows[source][index];
      if (!classEdit) return;
      item.classList.toggle("reached", classEdit.is_reached);
      item.querySelector("[data-class-edit]").textContent = classEdit.text;
    });
  }
  if (data.classEdits) radios.forEach((radio) => radio.addEventListener("change", showClassEdits));

  const ranking = document.getElementById("ranking");
  const orders = [...document.querySelectorAll("[data-order]")];
  for (const button of orders) {
    button.addEventListener("click", () => {
      const key = button.dataset.order;
      orders.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      [...ranking.children]
        .sort((first, second) => Number(second.dataset[key]) - Number(first.dataset[key]))
        .forEach((row) => ranking.append(row));
      if (key === "visibility") unfold();
    });
  }

  const unfoldButton = document.querySelector("[data-unfold]");
  function unfold() {
    ranking.classList.add("expanded");
    if (unfoldButton) unfoldButton.hidden = true;
  }
  unfoldButton?.addEventListener("click", () => {
    unfold();
    ranking.querySelector(".minor a").focus();
  });

  document.querySelectorAll("[data-film]").forEach(setUpCard);
  document.documentElement.classList.add("scripted");
})();
