"use strict";
(function () {
  const root = document.documentElement;
  root.classList.add("js");

  for (const button of document.querySelectorAll(".copy")) {
    const code = button.parentElement.querySelector("code");
    button.hidden = false;
    button.addEventListener("click", function () {
      const range = document.createRange();
      range.selectNodeContents(code);
      const chosen = window.getSelection();
      chosen.removeAllRanges();
      chosen.addRange(range);
      const copied = document.execCommand("copy");
      button.textContent = copied ? "Copied" : "Selected";
    });
  }

  const stored = document.getElementById("pictures-data");
  if (!stored) return;
  const data = JSON.parse(stored.textContent);
  const form = document.querySelector(".controls");
  const slider = form.elements.step;
  const state = document.getElementById("state");
  form.hidden = false;

  function sheetOf(arm) {
    const key = [arm, form.elements.attack.value, form.elements.scale.value, slider.value].join(".");
    return data.sheets[data.cells[key]];
  }

  function showTile(tile) {
    const { arm, kind, index } = tile.dataset;
    const sheet = sheetOf(arm);
    const image = tile.querySelector("img");
    const source = sheet ? sheet[kind][index] : undefined;
    if (source === image.getAttribute("src")) return;
    if (source) image.src = source;
    else image.removeAttribute("src");
    tile.classList.toggle("empty", !source);
    tile.classList.toggle("veiled", Boolean(source) && sheet["h" + kind][index] === "1");
    tile.querySelector(".peek").checked = false;
  }

  function show() {
    const attack = data.attacks[form.elements.attack.value];
    const where = attack.places[slider.value];
    slider.setAttribute("aria-valuetext", where);
    state.textContent = where + ", guidance " + data.guidances[form.elements.scale.value];
    document.querySelectorAll(".tile").forEach(showTile);
    for (const score of document.querySelectorAll("[data-score]")) {
      const sheet = sheetOf(score.dataset.score);
      score.textContent = sheet ? sheet.s[0].toFixed(1) + " %" : "–";
    }
  }

  function chooseAttack() {
    const attack = data.attacks[form.elements.attack.value];
    slider.max = attack.steps.length - 1;
    slider.value = slider.max;
    document.querySelector(".ticks").replaceChildren(
      ...attack.steps.map(function (step) {
        const tick = document.createElement("li");
        tick.textContent = step;
        return tick;
      })
    );
    show();
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.elements.attack.addEventListener("change", chooseAttack);
  form.elements.scale.addEventListener("change", show);
  slider.addEventListener("input", show);
})();
