// The attention explorer: the picture with the maps of the chosen words over it, at one step or over all of them.
(() => {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const element = (id) => document.getElementById(id);
  const canvas = element("canvas");
  const context = canvas.getContext("2d");
  const colours = [[8, 8, 26], [182, 54, 121], [252, 253, 191]];  // as the pictures' (heatmaps.py)
  const views = data.views.map((view) => {
    const picture = new Image();
    picture.addEventListener("load", () => draw());
    picture.src = view.picture;
    const words = view.words.map((word) => {
      const text = atob(word.bytes);
      return {...word, values: Uint8Array.from(text, (character) => character.charCodeAt(0))};
    });
    return {...view, words, picture};
  });
  let shown = views[data.main];
  const chosen = new Set();  // of words; another view may call [V] otherwise

  const colour = (value) => {
    const place = Math.min(Math.max(value, 0), 1) * 2;
    const from = colours[Math.min(Math.floor(place), 1)];
    const to = colours[Math.min(Math.floor(place), 1) + 1];
    const part = place - Math.min(Math.floor(place), 1);
    return from.map((low, i) => low + part * (to[i] - low));
  };

  const button = (place, text, pressed, act) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-pressed", String(pressed));
    made.addEventListener("click", () => act(made));
    place.append(made);
  };

  const heat = (frame) => {  // the chosen words' probabilities, added up
    const size = shown.height * shown.width;
    const sum = new Float32Array(size);
    let top = 0;
    for (const word of shown.words) {
      if (!chosen.has(word.text)) continue;
      for (let i = 0; i < size; i++) sum[i] += word.values[frame * size + i] / 255 * word.top;
    }
    for (const value of sum) top = Math.max(top, value);
    return {sum, top: element("own-scale").checked ? top : data.peak};
  };

  const draw = () => {
    const frame = Number(element("frame").value);
    element("frame-name").textContent = shown.frames[frame];
    const {naturalWidth: width, naturalHeight: height} = shown.picture;
    if (!width) return;
    const scale = Math.max(1, Math.round(512 / Math.max(width, height)));
    canvas.width = width * scale;
    canvas.height = height * scale;
    context.imageSmoothingEnabled = scale === 1;
    context.globalAlpha = 1;
    context.drawImage(shown.picture, 0, 0, canvas.width, canvas.height);
    const words = shown.words.filter((word) => chosen.has(word.text));
    const share = words.reduce((total, word) => total + word.shares[frame], 0);
    element("share").textContent = words.length
      ? `${words.map((word) => word.text).join(" + ")}: ${(100 * share).toFixed(1)} % of the attention`
      : "No word is chosen.";
    if (!words.length) return;
    const {sum, top} = heat(frame);
    const map = new ImageData(shown.width, shown.height);
    sum.forEach((value, i) => map.data.set([...colour(value / (top || 1)), 255], 4 * i));
    const small = document.createElement("canvas");
    small.width = shown.width;
    small.height = shown.height;
    small.getContext("2d").putImageData(map, 0, 0);
    context.globalAlpha = Number(element("strength").value) / 100;
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
  };

  const choose = () => {  // what this view begins with
    for (const word of shown.words) if (word.chosen) chosen.add(word.text);
  };

  const offer = () => {  // the words of the view that is shown
    const place = element("words");
    place.replaceChildren(place.querySelector("legend"));
    for (const word of shown.words) {
      button(place, word.text, chosen.has(word.text), (made) => {
        const now = made.getAttribute("aria-pressed") !== "true";
        made.setAttribute("aria-pressed", String(now));
        if (now) chosen.add(word.text); else chosen.delete(word.text);
        draw();
      });
    }
    element("frame").max = shown.frames.length - 1;
    element("made-by").hidden = !shown.command;
    element("made-by").querySelector("code").textContent = shown.command ?? "";
    element("made-by").querySelector("button").dataset.copy = shown.command ?? "";
  };

  for (const view of views) {
    button(element("views"), view.label, view === shown, (made) => {
      for (const other of element("views").querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
      made.setAttribute("aria-pressed", "true");
      shown = view;
      if (!view.words.some((word) => chosen.has(word.text))) choose();
      offer();
      draw();
    });
  }
  choose();
  offer();
  for (const id of ["frame", "strength", "own-scale"]) element(id).addEventListener("input", draw);
  draw();
})();
