"use strict";
// Without this script the ranking, the grids and the numbers still show; with it, each card gets its screens and slider.
(() => {
  const FRAME_MILLISECONDS = 130;
  const data = JSON.parse(document.getElementById("data").textContent);
  const radios = [...document.querySelectorAll('input[name="source"]')];
  const chosen = () => Math.max(0, radios.findIndex((radio) => radio.checked));
  const show = (value) => (data.isShare ? `${Math.round(100 * value)} %` : value.toFixed(2).replace("-", "−"));

  // The films of the source shown first stand in the page: they are taken from there once.
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
    const bars = [...card.querySelectorAll(".answers li")];
    const marker = card.querySelector(".marker");
    const button = card.querySelector("[data-play]");
    let timer = 0;
    let direction = 1;

    // One film image holds every frame; the screen shows the part that lies at the frame.
    function place(image, frame) {
      image.style.width = `${100 * frames}%`;
      image.style.transform = `translateX(${(-100 * frame) / frames}%)`;
    }

    function showSource() {
      const source = data.sources[chosen()];
      strip.src = film.films[chosen()];
      screens.source.src = source.picture;
      screens.source.alt = `Source ${chosen() + 1}, ${source.name}`;
      screens.edit.src = strip.src;
      if (screens.difference) screens.difference.src = film.maps[chosen()];
      bars.forEach((bar, index) => {
        const own = bar.querySelector(".own");
        if (own && source.answer.length) own.style.left = `${100 * source.answer[film.bars[index]]}%`;
      });
      showFrame();
    }

    function showFrame() {
      const frame = Number(slider.value);
      const what = `source ${chosen() + 1}, ${film.title} at ${film.labels[frame]}`;
      const answers = bars.map((_, index) => film.answers[chosen()][frame][index]);
      const top = answers.indexOf(Math.max(...answers));
      output.textContent = film.labels[frame];
      slider.setAttribute("aria-valuetext", film.labels[frame] +
        (bars.length && data.isShare ? `; ${data.names[film.bars[top]]} ${show(answers[top])}` : ""));
      marker.style.left = `${(100 * frame) / frames}%`;
      place(screens.edit, frame);
      screens.edit.alt = `Edited ${what}`;
      if (screens.difference) {
        place(screens.difference, frame);
        screens.difference.alt = `Difference map of ${what}`;
      }
      bars.forEach((bar, index) => {
        const level = bar.querySelector(".level");
        if (level) level.style.width = `${100 * answers[index]}%`;
        bar.querySelector(".value").textContent = show(answers[index]);
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
      const box = event.currentTarget.getBoundingClientRect();
      const frame = Math.floor((frames * (event.clientX - box.left)) / box.width);
      slider.value = String(Math.min(frames - 1, Math.max(0, frame)));
      stop();
      showFrame();
    });
    radios.forEach((radio) => radio.addEventListener("change", showSource));
    showSource();
  }

  // The strips of the opening follow the chosen picture, too.
  for (const image of document.querySelectorAll(".exhibits [data-strip]")) {
    const id = image.dataset.card || image.closest("[data-card]").dataset.card;
    const about = image.alt.replace(data.sources[data.start].name, "");
    radios.forEach((radio, index) => radio.addEventListener("change", () => {
      if (!radio.checked) return;
      image.src = data.films[id].films[index];
      image.alt = about + data.sources[index].name;
    }));
    image.parentElement.addEventListener("click", () => document.getElementById(id).scrollIntoView());
  }

  // So do the answers under the edits towards them.
  function showTiles() {
    const source = chosen();
    const picture = document.querySelector("[data-tile-source]");
    picture.src = data.sources[source].picture;
    picture.alt = `Source: ${data.sources[source].name}`;
    document.querySelector("[data-tile-own]").textContent = data.tiles.own[source];
    document.querySelectorAll(".tiles li").forEach((item, index) => {
      const tile = data.tiles.rows[source][index];
      if (!tile) return;
      item.classList.toggle("reached", tile.is_reached);
      item.querySelector("[data-tile]").textContent = tile.text;
    });
  }
  if (data.tiles) radios.forEach((radio) => radio.addEventListener("change", showTiles));

  const ranking = document.getElementById("ranking");
  const orders = [...document.querySelectorAll("[data-order]")];
  for (const button of orders) {
    button.addEventListener("click", () => {
      const key = button.dataset.order;
      orders.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      [...ranking.children]
        .sort((first, second) => Number(second.dataset[key]) - Number(first.dataset[key]))
        .forEach((row) => ranking.append(row));
      if (key === "visible") unfold();
    });
  }

  const unfolder = document.querySelector("[data-unfold]");
  function unfold() {
    ranking.classList.add("whole");
    if (unfolder) unfolder.hidden = true;
  }
  unfolder?.addEventListener("click", () => {
    unfold();
    ranking.querySelector(".minor a").focus();
  });

  document.querySelectorAll("[data-film]").forEach(setUpCard);
  document.documentElement.classList.add("scripted");
})();
